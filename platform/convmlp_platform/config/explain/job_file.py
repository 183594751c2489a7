"""The values of a job file as they stand in it: read by our YAML, laid over the file that it `extends`.

    extends: pretrain_convmlp.yaml    # from this file's folder; that one extends none itself
    name: pretrain-convmlp-m
    model: {name: convmlp_m}

Sections are laid over sections, field by field; lists and values take the place of what was there, null too. Where
`kind` differs, as of a source of data, the whole section is another one, and takes its place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convmlp_platform.config.explain import yaml_text
from convmlp_platform.errors import ConfigError

EXTENDS = "extends"


def read_values(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The nested values of a job file; and dotted name → origin, "from FILE", of those that it took from another file.

    Of a sweep, too: the values of its job stand in place of that job's file.

    Raises:
        ConfigError: a file can't be read, isn't YAML or no mapping, or extends what it can't.
    """
    values, origins = _extended(path)
    return with_job(values, path), origins


def with_job(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """A sweep's values with those of its job in place of that job's file, so that `--set job.a.b=c` works too.

    Raises:
        ConfigError: as `read_values`.
    """
    named = values.get("job")
    if values.get("kind") != "sweep" or not isinstance(named, str):
        return values
    return values | {"job": _extended(path.parent / Path(named).expanduser(), "job: ")[0]}


def _extended(path: Path, field: str = "") -> tuple[dict[str, Any], dict[str, str]]:
    values = _mapping(path, field)
    if EXTENDS not in values:
        return values, {}
    named, own = values[EXTENDS], {key: value for key, value in values.items() if key != EXTENDS}
    where = f"{path}: {field}{EXTENDS}"
    if not isinstance(named, str) or not named:
        raise ConfigError(f"{where}: must be a job file's name, from this one's folder (got {named!r})")
    file = path.parent / Path(named).expanduser()
    try:
        base = _mapping(file)
    except ConfigError as error:
        raise ConfigError(f"{where} (={named}): {error}") from None
    if EXTENDS in base:
        raise ConfigError(
            f"{where} (={named}): {file} extends {base[EXTENDS]!r} itself, and one level is all there is: extend that "
            "file, and say all that differs here"
        )
    kind = own.setdefault("kind", base.get("kind"))
    if kind != base.get("kind"):
        raise ConfigError(
            f"{where} (={named}): its kind is {base.get('kind')!r}, this file's {kind!r}: a job extends one of its kind"
        )
    return laid_over(base, own), dict.fromkeys(_left(base, own), f"from {file}")


def laid_over(base: Any, own: Any) -> Any:
    """`own` in place of `base`; of two sections field by field, unless their `kind` differs."""
    if not _are_one_section(base, own):
        return own
    return base | {key: laid_over(base.get(key), value) for key, value in own.items()}


def _left(base: dict[str, Any], own: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of what `laid_over` takes from `base`."""
    for key, value in base.items():
        if key not in own:
            yield f"{prefix}{key}"
        elif _are_one_section(value, own[key]):
            yield from _left(value, own[key], f"{prefix}{key}.")


def _are_one_section(base: Any, own: Any) -> bool:
    both = isinstance(base, dict) and isinstance(own, dict)
    return both and ("kind" not in own or own["kind"] == base.get("kind"))


def _mapping(path: Path, field: str = "") -> dict[str, Any]:
    values = yaml_text.parse(_read(path), str(path))
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: {field}a job file is a mapping that begins with `kind: train` or `kind: prepare`"
        )
    return values


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(yaml_text.MAX_BYTES + 1)  # what is longer is refused
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such job file{_nearest_files(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a job file{_listed_files(path)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8, so not a job file") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't read the job file: {error.strerror}") from None


def _nearest_files(path: Path) -> str:
    folders = [path.parent, path.parent / "jobs"]
    candidates = {str(file): file for folder in folders for file in sorted(folder.glob("*.y*ml"))}
    stems = {file.stem: name for name, file in reversed(candidates.items())}
    near = difflib.get_close_matches(path.stem, list(stems), n=1, cutoff=0.85)
    near = near or difflib.get_close_matches(path.stem, list(stems), n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(stems[stem] for stem in near)}?"
    return _listed_files(path.parent)


def _listed_files(folder: Path) -> str:
    files = [str(file) for file in sorted(folder.glob("*.y*ml"))][:10] if folder.is_dir() else []
    return f"; job files there: {', '.join(files)}" if files else ""
