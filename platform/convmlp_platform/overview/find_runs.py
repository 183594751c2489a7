"""The run folders below a place: runs, trials of sweeps, and what may not be looked into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from convmlp_platform.config.paths import root
from convmlp_platform.errors import ConfigError
from convmlp_platform.runs.find_run import OF_RUNS, RUNS, SWEEP_NAME, find_run
from data_prep.console import some_of

# Datasets, evaluations and bundles hold no runs.
_OF_OTHERS = frozenset({"manifest.json", "result.json", "bundle.json", "MLmodel"})
_DEEPEST = 3
_NAMES_SHOWN = 10


@dataclass(frozen=True)
class FoundRun:
    """A run's folder; `name` is its path from the place on. `problem`: why it can't be looked into."""

    path: Path
    name: str
    problem: str | None = None


def runs_place(text: str | None) -> Path:
    """The folder in which runs are looked for: the one that a user names as he names runs, or CONVMLP_ROOT/runs.

    Raises:
        ConfigError: there is no such folder.
    """
    return root() / RUNS if text is None else find_run(text, noun="folder of runs")


def one_run(text: str) -> Path:
    """The folder of the run that a user names.

    Raises:
        ConfigError: there is no such folder, or it holds no run, or several.
    """
    folder = find_run(text)
    found = find_runs(folder)
    if [one.path for one in found] == [folder]:
        return folder
    names = some_of([f"{text.rstrip('/')}/{one.name}" for one in found], _NAMES_SHOWN)
    more = f": it holds {names}" if found else ""
    raise ConfigError(f"{folder} is no run's folder{more}")


def find_runs(place: Path) -> list[FoundRun]:
    """All runs in `place` and the folders below it, or the one that `place` itself is; by name.

    Folders of datasets and evaluations, hidden ones, and what lies more than three folders down are passed over.
    """
    return sorted(_below(place, "", 0), key=lambda found: found.name)


def _below(folder: Path, name: str, depth: int) -> Iterator[FoundRun]:
    try:
        with os.scandir(folder) as listing:
            entries = {entry.name: entry for entry in listing if not entry.name.startswith(".")}
    except FileNotFoundError:
        return
    except OSError as error:
        yield FoundRun(folder, name or folder.name, error.strerror or str(error))
        return
    if SWEEP_NAME not in entries and entries.keys() & OF_RUNS:
        yield FoundRun(folder, name or folder.name)
        return
    if depth == _DEEPEST or entries.keys() & _OF_OTHERS - {"result.json" if SWEEP_NAME in entries else ""}:
        return
    for entry in entries.values():
        if _is_folder(entry):
            yield from _below(folder / entry.name, f"{name}/{entry.name}".lstrip("/"), depth + 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
