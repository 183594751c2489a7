"""From a job file to a checked job, and back to text.

The order in which a value is decided: the schema's default; the job file; `--set`, later ones winning.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from convmlp_platform.config import automatic
from convmlp_platform.config.explain import yaml_text
from convmlp_platform.config.explain.problems import Explainer
from convmlp_platform.config.explain.suggest import nearest
from convmlp_platform.config.overrides import apply_overrides
from convmlp_platform.config.schema import JOB_ADAPTER, JOB_KINDS, Job, TrainJob
from convmlp_platform.errors import ConfigError

Scalar = str | int | float | bool | None


def load_job(
    path: str | Path,
    overrides: Sequence[str] = (),
    open_manifest: automatic.OpenManifest | None = None,
) -> Job:
    """The job that a YAML file describes, with `--set` overrides (`a.b=c`) laid over it and `auto` values decided.

    Args:
        open_manifest: as `parse_job` takes it.

    Raises:
        ConfigError: the file can't be read, isn't YAML, or doesn't describe a job. Each problem has
            a line of the message: the file, the dotted field, and the nearest valid name for an unknown one.
    """
    values = yaml_text.parse(_read(Path(path)), str(path))
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: a job file is a mapping that begins with `kind: train` or `kind: prepare`"
        )
    values = _with_job(values, Path(path))
    values, names, problems = apply_overrides(values, overrides)
    return parse_job(_with_job(values, Path(path)), str(path), names, problems, open_manifest)


def _with_job(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """A sweep's values with those of its job in place of that job's file, so that `--set job.a.b=c` works too."""
    named = values.get("job")
    if values.get("kind") != "sweep" or not isinstance(named, str):
        return values
    file = path.parent / Path(named).expanduser()
    job = yaml_text.parse(_read(file), str(file))
    if not isinstance(job, dict):
        raise ConfigError(f"{file}: job: a job file is a mapping that begins with `kind: train`")
    return values | {"job": job}


def parse_job(
    values: dict[str, Any],
    where: str,
    overridden: Sequence[str] = (),
    problems: Sequence[str] = (),
    open_manifest: automatic.OpenManifest | None = None,
) -> Job:
    """The job that nested `values` describe; `where` begins each line of an error, after earlier `problems`.

    Args:
        open_manifest: finds the dataset that values of `auto` follow from; default: in a folder of this machine.

    Raises:
        ConfigError: as `load_job`.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in JOB_KINDS:
        raise ConfigError("\n".join([*problems, f"{where}: kind: {_kind_problem(kind, 'kind' in values)}"]))
    model = JOB_KINDS[kind]
    if model is TrainJob:
        values = automatic.decided(values, where, open_manifest)
    try:
        # Through JSON and strict: a list may be a tuple and a string a path, but "5" or true is not a number.
        job = model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        lines = Explainer(model, values, overridden).lines(error)
        raise ConfigError("\n".join([*problems, *(f"{where}: {line}" for line in lines)])) from None
    if problems:
        raise ConfigError("\n".join(problems))
    return job


def _kind_problem(kind: Any, given: bool) -> str:
    if not given:
        return f"required, but missing; one of {', '.join(JOB_KINDS)}"
    near = nearest(str(kind)[:100], JOB_KINDS)
    *others, last = JOB_KINDS
    words = f"{', '.join(others)} or {last}"
    return f"must be {words} (got {repr(kind)[:100]})" + (f"; did you mean {near}?" if near else "")


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


def flatten(section: BaseModel) -> dict[str, Scalar]:
    """Dotted name → value of every field, defaults included (MLflow's params). Lists become JSON text."""
    return {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in flat_values(section.model_dump(mode="json")).items()
    }


def flat_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names → scalars and lists; an empty mapping has no names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flat_values(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def dump_yaml(job: Job) -> str:
    """The whole job as YAML, defaults written out; `load_job` of it gives an equal job."""
    values = job.model_dump(mode="json")
    return yaml_text.dump({"kind": values.pop("kind"), "name": values.pop("name"), **values})


def json_schema(kind: str | None = None) -> dict[str, Any]:
    """The JSON schema (2020-12) of job files of one kind, or of all."""
    schema = JOB_ADAPTER.json_schema() if kind is None else JOB_KINDS[kind].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ConvMLP job file"} | schema
