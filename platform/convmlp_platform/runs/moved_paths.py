"""The paths in a recorded job of a run that was moved or copied since: they lead to where the run is now."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_PATHS = (("data", "path"), ("checkpoint", "path"), ("checkpoint", "store"), ("model", "init_from"))


def follow_run(values: dict[str, Any], run: Path) -> dict[str, Any]:
    """The values of the job of the run in `run`, as they were recorded but for paths in the folder that it came from.

    The parts in which the run's former folder and its folder now differ from the left on are that folder before and
    now. What isn't in the new one is left where it was, and a line says so.
    """
    homes = _homes(values, run.absolute())
    if homes is None:
        return values
    before, now = homes
    found = dict(values)
    for section, key in _PATHS:
        text = found[section].get(key) if isinstance(found.get(section), dict) else None
        if not isinstance(text, str) or not Path(text).is_relative_to(before):
            continue
        there = now / Path(text).relative_to(before)
        if there.exists():
            found[section] = {**found[section], key: str(there)}
        elif Path(text).exists():
            logger.warning(
                "run %s came from %s without %s.%s: it is read where it was (%s)",
                run,
                before,
                section,
                key,
                text,
            )
    return found


def _homes(values: dict[str, Any], run: Path) -> tuple[Path, Path] | None:
    """The folder that moved, by its name before and now; None where the run is where it was."""
    try:
        before = Path(values["checkpoint"]["path"]) / values["name"]
    except (KeyError, TypeError):
        return None
    same = 0
    for old, new in zip(reversed(before.parts), reversed(run.parts), strict=False):
        if old != new:
            break
        same += 1
    if not before.is_absolute() or before == run or not 0 < same < min(len(before.parts), len(run.parts)):
        return None
    if before.exists() and before.samefile(run):
        return None
    return before.parents[same - 1], run.parents[same - 1]
