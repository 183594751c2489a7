"""The run that a user names, or another folder of ours: one look-up for every command.

    NAME, SWEEP/TRIAL        a run, or a trial of a sweep, in runs/ below CONVMLP_ROOT
    runs/NAME, any/path      from the current folder, else from CONVMLP_ROOT, as messages print it
    /mnt/runs/NAME, file://  where it says

Of several places, one that holds something of ours comes first. What isn't there is refused with the places that were
looked at, and with the name nearest in spelling.
"""

# ruff: noqa: PTH110, PTH111, PTH112, PTH113
# os.path says that a name which is too long, or in a folder that may not be read, isn't there; pathlib raises.

from __future__ import annotations

import difflib
import logging
import os.path
from collections.abc import Iterator, Sequence
from pathlib import Path

from convmlp_platform.config.paths import REGISTRY_SCHEME, root
from convmlp_platform.errors import ConfigError
from data_prep.storage.urls import local_path, shown

logger = logging.getLogger(__name__)

RUNS = "runs"
"""Folder below CONVMLP_ROOT in which jobs have their runs, unless they say otherwise (`checkpoint.path`)."""
SWEEP_NAME = "sweep.json"
"""The list of a sweep's trials, in its folder."""
# The first start of a run may have been killed before it wrote more than one of them.
OF_RUNS = (
    "run.json", "job.json", "events.jsonl", "checkpoints", "ledger", "goodput", "init", "driver.json", "trial.json",
)  # fmt: skip
"""A folder with any of these is a run's."""
# What sweeps, evaluations, checkpoints, bundles and datasets hold, too; any of it is enough.
_RECORDS = (
    *OF_RUNS, "best", "tracking", SWEEP_NAME, "result.json", "manifest.json", "bundle.json", "init.json",
)  # fmt: skip
_WEIGHTS = (".pth", ".pt", ".npz", ".safetensors")
_NAMES_SHOWN = 10


def find_run(text: str, below: Sequence[str] = (RUNS,), noun: str = "run") -> Path:
    """The folder that `text` means, absolute.

    Args:
        text: as a user gives it, see above.
        below: the folders below CONVMLP_ROOT that a bare name is looked for in.
        noun: what is looked for, for the message.

    Raises:
        ConfigError: there is no such folder, or it is remote.
    """
    if is_remote(text):
        raise ConfigError(
            f"{shown(text)}: of what is remote only checkpoints are read: mount it, and give the folder of the {noun}"
        )
    found = locate(text, below)
    if found is None:
        raise ConfigError(f"no {noun} {text or repr(text)}{missing(text, below)}")
    if not os.path.isdir(found):
        raise ConfigError(f"{found} is a file, not the folder of a {noun}")
    return found


def find_run_or_url(text: str) -> str:
    """The folder as `find_run` has it, or `text` itself where it is the URL of something remote.

    Raises:
        ConfigError: there is no such folder.
    """
    return text if is_remote(text) else str(find_run(text))


def is_remote(text: str) -> bool:
    """Whether this is a URL that names no file or folder of this machine."""
    return _local(text) is None


def _local(text: str) -> Path | None:
    try:
        return local_path(text)
    except ValueError:  # a URL that none is
        return None


def locate(text: str, below: Sequence[str] = (RUNS,)) -> Path | None:
    """The file or folder that `text` means, absolute; None: it isn't there, or `text` names no place of this machine.

    Args:
        text: as a user gives it, or as a job has it after its paths were resolved.
        below: as `find_run` takes it.
    """
    places = _places(text, below)
    logger.debug("%r is looked for at %s", text, ", ".join(map(str, places)) or "no place")
    there = (place for place in places if os.path.exists(place))
    return next((place for place in places if _is_ours(place)), next(there, None))


def missing(text: str, below: Sequence[str] = (RUNS,)) -> str:
    """The end of an error message on what `locate` doesn't find: `: looked for A and B; ...`, or `; did you mean X?`
    and that."""
    places = _places(text, below)
    if not places:
        return ": give its folder, or its name, such as runs/NAME"
    *most, last = map(str, places)
    looked = f"ooked for {', '.join(most)}{' and ' if most else ''}{last}"
    parent = _furthest(places).parent
    names = _names(parent)
    if names:
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        looked += f"; {parent} holds {', '.join(names[:_NAMES_SHOWN])}{more}"
    near = next((_as_given(text, one) for one in _near(places, below)), None)
    return f": l{looked}" if near is None else f"; did you mean {near}? L{looked}"


def _places(text: str, below: Sequence[str]) -> list[Path]:
    """Where it may be, in the order in which it is looked for there."""
    local = _local(text)
    if local is None or not text or text.startswith(REGISTRY_SCHEME):
        return []
    path, base = Path(os.path.expanduser(local)), root()
    if not path.is_absolute():
        places = [path.absolute(), base / path]
    else:
        places = [path]
        if not path.is_relative_to(base):
            return places
        path = path.relative_to(base)
    places += [base / one / path for one in below if path.parts[:1] != (one,)]
    return list(dict.fromkeys(places))


def _is_ours(place: Path) -> bool:
    if os.path.isfile(place):
        return place.suffix in _WEIGHTS
    return any(os.path.exists(place / name) for name in _RECORDS)


def _furthest(places: Sequence[Path]) -> Path:
    """The beginning of the place of which least is missing, up to the first name that isn't there."""
    firsts = [_first_missing(place) for place in reversed(places)]
    return min(firsts, key=lambda first: first[1])[0]


def _first_missing(place: Path) -> tuple[Path, int]:
    """The place up to the first name that isn't there, and how many names are missing."""
    missing = [place, *(one for one in place.parents if not os.path.isdir(one))]
    return missing[-1], len(missing)


def _names(folder: Path) -> list[str]:
    """Of all that is ours in a folder, sorted."""
    try:
        return sorted(
            entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and _is_ours(entry)
        )
    except OSError:
        return []


def _near(places: Sequence[Path], below: Sequence[str]) -> Iterator[Path]:
    """Places that may have been meant: nearest in spelling, or a sweep's trial given without its sweep."""
    for place in reversed(places):
        first, number = _first_missing(place)
        # Of a folder on the way its name is enough, of the last one it must be something of ours.
        names = _names(first.parent) if number == 1 else _folders(first.parent)
        for name in difflib.get_close_matches(first.name, names, n=1):
            whole = first.with_name(name) / place.relative_to(first)
            yield whole if os.path.exists(whole) else first.with_name(name)
    for folder in (root() / one for one in below):
        trials = [folder / sweep / places[0].name for sweep in _folders(folder)]
        yield from (trial for trial in trials if _is_ours(trial))


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(
            entry.name
            for entry in folder.iterdir()
            if not entry.name.startswith(".") and os.path.isdir(entry)
        )
    except OSError:
        return []


def _as_given(text: str, place: Path) -> str:
    """A place as a user may give it: from CONVMLP_ROOT or the current folder on, unless `text` was absolute."""
    local = _local(text)
    if local is None or not local.is_absolute():
        for base in (root(), Path.cwd()):
            if place.is_relative_to(base):
                return str(place.relative_to(base))
    return str(place)
