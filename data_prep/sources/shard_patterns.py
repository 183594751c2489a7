"""The files that a pattern such as `train-{000..146}.tar` or `*val*.tar` names below a folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from data_prep.errors import DataPrepError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_NAMES = 100_000


def expand_braces(pattern: str) -> list[str]:
    """`a{1..3}` → a1 a2 a3, `{000..146}` keeps its zeros, `{x,y}` → x y, as in a shell; in order, each once.

    Raises:
        DataPrepError: a brace has no partner, or there are more than 100,000 names.
    """
    names = [pattern]
    while any(_BRACES.search(name) for name in names):
        expanded: dict[str, None] = {}
        for name in names:
            match = _BRACES.search(name)
            choices = _choices(match[1]) if match else [""]
            if len(expanded) + len(choices) > _MAX_NAMES:
                raise DataPrepError(f"{pattern!r} stands for more than {_MAX_NAMES:,} names")
            for choice in choices:
                expanded[name[: match.start()] + choice + name[match.end() :] if match else name] = None
        names = list(expanded)
    if any("{" in name or "}" in name for name in names):
        raise DataPrepError(f"{pattern!r} has a brace without its partner")
    return names


def find_shards(root: Path, pattern: str, where: str) -> list[str]:
    """The files below `root` that a pattern names, relative to it, sorted.

    Args:
        root: the folder.
        pattern: with braces and wildcards.
        where: the dotted field the pattern is from, for messages.

    Raises:
        DataPrepError: no file matches, one that is named outright is missing, or one lies outside of `root`.
    """
    found: dict[str, None] = {}
    absent = []
    for name in expand_braces(pattern):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name:
            raise DataPrepError(f"{where}: {name!r} must lie below source.path, {root}")
        if any(character in name for character in "*?["):
            matches = [str(path.relative_to(root)) for path in root.glob(name) if path.is_file()]
        else:
            matches = [name] if (root / name).is_file() else []
        if not matches:
            absent.append(name)
        found |= dict.fromkeys(matches)
    if absent:
        raise DataPrepError(f"{where}: no file {_some(absent)} below {root}{_what_is_there(root)}")
    for name in found:
        if not (root / name).resolve().is_relative_to(root.resolve()):
            raise DataPrepError(f"{root / name} leads out of source.path to {(root / name).resolve()}")
    return sorted(found)


def _choices(inside: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = int(match[1]), int(match[2])
        if abs(last - first) >= _MAX_NAMES:
            raise DataPrepError(f"{{{inside}}} stands for more than {_MAX_NAMES:,} names")
        padded = any(text.startswith("0") and len(text) > 1 for text in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        step = 1 if last >= first else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    if "," not in inside:
        raise DataPrepError(f"{{{inside}}} is neither a range {{000..146}} nor a list {{a,b}}")
    return inside.split(",")


def _what_is_there(root: Path) -> str:
    tars = sorted(str(path.relative_to(root)) for glob in ("*.tar", "*/*.tar") for path in root.glob(glob))
    return f"; the tars there: {_some(tars)}" if tars else ", where there are no tars at all"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
