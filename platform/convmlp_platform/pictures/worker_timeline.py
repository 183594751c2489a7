"""The timeline of each worker over the time of a run: a lane for each, coloured by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.pictures.style import FAINT, FRAME, INK, Color

_COLUMNS = 600
_LANES = 24
_UNITS = ((7200.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


@dataclass(frozen=True)
class Stretch:
    """Seconds `begin`..`end` of a worker, of which so many were of each class."""

    worker: int
    begin: float
    end: float
    seconds: Mapping[str, float]


def worker_timeline(
    stretches: Sequence[Stretch],
    classes: Mapping[str, tuple[str, Color]],
    marks: Sequence[tuple[float, str]],
    *,
    title: str,
    subtitle: str,
) -> Any:
    """A matplotlib Figure.

    Args:
        stretches: those of one worker don't overlap. Above 24 workers, several share a lane.
        classes: a name and a colour for each, in the order in which they are stacked; of a column of time narrower
            than a stretch each class takes its share of the height.
        marks: (second, text), drawn as lines over all lanes.
    """
    from matplotlib.figure import Figure

    workers = 1 + max((one.worker for one in stretches), default=0)
    whole = max((one.end for one in stretches), default=0.0) or 1.0
    divisor, unit = next((divisor, name) for least, divisor, name in _UNITS if whole >= least)
    groups = np.array_split(np.arange(workers), min(workers, _LANES))
    figure = Figure(figsize=(11, 2.3 + 0.34 * len(groups)), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0.0, whole, _COLUMNS + 1)
    lane_of = {worker: lane for lane, group in enumerate(groups) for worker in group.tolist()}
    by_lane: list[list[Stretch]] = [[] for _ in groups]
    for one in stretches:
        by_lane[lane_of[one.worker]].append(one)
    for lane, group in enumerate(groups):
        shares = _shares(by_lane[lane], len(group), list(classes), edges)
        _lane(axes, lane, shares, edges / divisor, classes)
    _marks(axes, [(second / divisor, text) for second, text in marks], len(groups))
    names = [str(g[0]) if len(g) == 1 else f"{g[0]} to {g[-1]}" for g in groups]
    axes.set_yticks([lane + 0.45 for lane in range(len(groups))], names, fontsize=8.5)
    axes.set(xlim=(0, whole / divisor), ylim=(len(groups), 0.0 if not marks else -0.55))
    axes.set_xlabel(f"{unit} since the run began", fontsize=9, color=_hex(FAINT))
    axes.set_ylabel("worker", fontsize=9, color=_hex(FAINT))
    axes.tick_params(length=0, colors=_hex(INK), labelsize=9)
    axes.spines[:].set_visible(False)
    _legend(figure, classes)
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_hex(INK))
    axes.set_title(subtitle, loc="left", fontsize=9.5, color=_hex(FAINT))
    return figure


def _shares(
    stretches: Sequence[Stretch], workers: int, classes: Sequence[str], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The share of each class in each column of time, shape (classes, columns); 0 where nobody was under a driver."""
    found = np.zeros((len(classes), len(edges) - 1))
    width = edges[1] - edges[0]
    for one in stretches:
        if one.end <= one.begin:
            continue
        first, last = np.clip(
            np.searchsorted(edges, (one.begin, one.end), side="right") - 1, 0, len(edges) - 2
        )
        inside = np.minimum(edges[first + 1 : last + 2], one.end) - np.maximum(
            edges[first : last + 1], one.begin
        )
        part = np.clip(inside, 0.0, None) / (one.end - one.begin) / width / workers
        for row, kind in enumerate(classes):
            if seconds := one.seconds.get(kind):
                found[row, first : last + 1] += seconds * part
    return found


def _lane(
    axes: Any,
    lane: int,
    shares: NDArray[np.float64],
    edges: NDArray[np.float64],
    classes: Mapping[str, tuple[str, Color]],
) -> None:
    bottom = lane + 0.9
    axes.fill_between(edges[[0, -1]], lane, bottom, color=_hex(FRAME), linewidth=0, zorder=0)
    tops = bottom - 0.9 * np.minimum(np.cumsum(shares, axis=0), 1.0)
    below = np.full(shares.shape[1], bottom)
    for (_, color), top in zip(classes.values(), tops, strict=True):
        if (top < below - 1e-9).any():
            low, high = (np.append(line, line[-1]) for line in (below, top))
            axes.fill_between(edges, low, high, step="post", color=_hex(color), linewidth=0)
        below = top


def _marks(axes: Any, marks: Sequence[tuple[float, str]], lanes: int) -> None:
    """Lines where something happened; of texts that would overlap only the first is written."""
    right = -np.inf
    span = axes.get_xlim()[1] if not marks else max(place for place, _ in marks)
    for place, text in marks:
        axes.plot([place, place], [-0.1, lanes], color=_hex(INK), linewidth=0.8)
        if place > right:
            axes.text(place, -0.18, text, fontsize=7.5, color=_hex(INK), ha="left", va="bottom")
            right = place + 0.014 * span * len(text)


def _legend(figure: Any, classes: Mapping[str, tuple[str, Color]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_hex(color), label=name) for name, color in classes.values()]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=9, handlelength=1.0
    )


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
