"""Rows of runs as a table for a terminal of any width: what matters least is left out first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convmlp_platform.overview.run_overview import RunOverview
from data_prep.console import short_duration

_GAP = 2
_SHORTEST_NAME, _SHORTEST_NOTE = 20, 16
# The first to be left out comes first.
_EXPENDABLE = ("workers", "goodput", "left", "best", "seen", "step")
_NOTHING = "-"
COLOUR_NAMES = {
    "running": "green", "waiting": "yellow", "silent": "yellow", "finished": "blue", "stopped": "cyan", "died": "red",
    "damaged": "red", "hidden": "magenta",
}  # fmt: skip
"""Of states."""
_CODES = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}


def newest_first(rows: Sequence[RunOverview]) -> list[RunOverview]:
    """Sorted by the last sign of life."""
    return sorted(rows, key=lambda row: (-(row.seen or 0.0), row.name))


def table_lines(
    rows: Sequence[RunOverview], now: float, width: int | None, *, coloured: bool = False
) -> list[str]:
    """The heading and a line for each run; the note follows in a line of its own where it has no room.

    Args:
        width: of the terminal; None: as wide as it gets.
        coloured: the states' words.
    """
    cells = {name: [name, *(cell(row, now) for row in rows)] for name, cell in _COLUMNS.items()}
    cells = {name: column for name, column in cells.items() if any(cell != _NOTHING for cell in column[1:])}
    widths = {name: max(map(len, column)) for name, column in cells.items()}
    if width is not None:
        widths = _fitted(widths, width)
    lines = []
    for number in range(len(rows) + 1):
        words = {name: _cut(cells[name][number], widths[name]) for name in widths}
        note = rows[number - 1].note if number else ""
        state = _CODES[COLOUR_NAMES[rows[number - 1].state]] if coloured and number else None
        lines += _row(words, widths, note, width, state)
    return lines


def _fitted(widths: dict[str, int], width: int) -> dict[str, int]:
    """The columns that have room; a long name is cut before one is left out."""
    fitted = dict(widths)
    least = min(widths["run"], _SHORTEST_NAME)
    for name in _EXPENDABLE:
        if _total(fitted | {"run": least}) <= width:
            break
        fitted.pop(name, None)
    room = width - _total(fitted) + fitted["run"]
    return fitted | {"run": max(least, min(widths["run"], room))}


def _row(
    words: dict[str, str], widths: dict[str, int], note: str, width: int | None, colour: int | None
) -> list[str]:
    padded = {
        name: word.ljust(widths[name]) if name in _WORDS else word.rjust(widths[name])
        for name, word in words.items()
    }
    if colour is not None:
        padded["state"] = f"\x1b[{colour}m{padded['state']}\x1b[0m"
    line, used = (" " * _GAP).join(padded.values()), _total(widths) + _GAP
    note = " ".join(note.split())
    if width is None or (note and width - used >= min(len(note), _SHORTEST_NOTE)):
        room = len(note) if width is None else width - used
        return [f"{line}{' ' * _GAP}{_cut(note, room)}".rstrip()]
    return [line.rstrip(), *([f"    {_cut(note, width - 4)}"] if note else [])]


def _total(widths: dict[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 1)]}…"


def score(metric: str | None, value: float | None) -> str:
    """`top1 61.20 %`."""
    return _NOTHING if value is None or metric is None else f"{metric} {value:.2f} %"


def progress(row: RunOverview) -> str:
    """`4,812/12,500`."""
    if row.step is None:
        return _NOTHING
    return f"{row.step:,}" if row.steps is None else f"{row.step:,}/{row.steps:,}"


_COLUMNS: dict[str, Callable[[RunOverview, float], str]] = {
    "run": lambda row, now: row.name,
    "state": lambda row, now: row.state,
    "step": lambda row, now: progress(row),
    "left": lambda row, now: _NOTHING if row.left_s is None else short_duration(row.left_s),
    "best": lambda row, now: score(row.metric, row.best),
    "goodput": lambda row, now: _NOTHING if row.goodput is None else f"{100 * row.goodput:.1f} %",
    "workers": lambda row, now: _NOTHING if row.workers is None else str(row.workers),
    "seen": lambda row, now: _NOTHING if row.seen is None else f"{short_duration(now - row.seen)} ago",
}
_WORDS = ("run", "state")
