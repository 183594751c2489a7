"""The account of a run as a picture: what each worker did, and when, a lane for each, coloured by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.goodput.account import Goodput
from convmlp_platform.goodput.report_text import NAMES, headline
from convmlp_platform.goodput.slices import TimeClass, TimeSlice
from convmlp_platform.pictures.style import FAINT, FRAME, INK, Color, hex_color

CLASS_COLORS: dict[TimeClass, Color] = {
    TimeClass.USEFUL_STEP: (89, 161, 79),
    TimeClass.EVALUATION: (118, 183, 178),
    TimeClass.DATA_WAIT: (242, 142, 43),
    TimeClass.CHECKPOINT: (78, 121, 167),
    TimeClass.COMPILE: (176, 122, 161),
    TimeClass.RESTART: (237, 201, 72),
    TimeClass.LOST_WORK: (225, 87, 89),
    TimeClass.IDLE: (190, 194, 200),
}
"""Work is green to blue, overheads are warm, loss is red, nothing is grey."""

_COLUMNS = 600
_LANES = 24
"""Above so many workers, several share a lane."""
_UNITS = ((7200.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds a unit, and the unit's name, for an axis of so many seconds."""
    return next((divisor, name) for least, divisor, name in _UNITS if seconds >= least)


def plot(run: str, found: Goodput, path: Path) -> Path:
    """Draw what each worker did into the file `path`; returns it.

    Of a column of time that is narrower than a slice each class takes its share of the height.

    Raises:
        OSError, ValueError: it can't be written, or matplotlib knows no such format.
    """
    from matplotlib.figure import Figure

    from convmlp_platform.pictures.charts import save_figure

    kinds = [kind for kind in TimeClass if found.seconds[kind] > 0.0]
    workers = 1 + max((worker for one in found.slices for worker in one.workers), default=0)
    whole = max((one.end for one in found.slices if one.workers), default=0.0) or 1.0
    divisor, unit = time_unit(whole)
    groups = np.array_split(np.arange(workers), min(workers, _LANES))
    figure = Figure(figsize=(11, 2.3 + 0.34 * len(groups)), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0.0, whole, _COLUMNS + 1)
    lane_of = {worker: lane for lane, group in enumerate(groups) for worker in group.tolist()}
    by_lane: list[list[tuple[TimeSlice, int]]] = [[] for _ in groups]
    for one in found.slices:
        for lane, count in Counter(map(lane_of.__getitem__, one.workers)).items():
            by_lane[lane].append((one, count))
    for lane, group in enumerate(groups):
        _lane(axes, lane, _shares(by_lane[lane], len(group), kinds, edges), edges / divisor, kinds)
    marks = [(one.time / divisor, one.cause) for one in found.interruptions]
    _marks(axes, marks, len(groups))
    names = [str(g[0]) if len(g) == 1 else f"{g[0]} to {g[-1]}" for g in groups]
    axes.set_yticks([lane + 0.45 for lane in range(len(groups))], names, fontsize=8.5)
    axes.set(xlim=(0, whole / divisor), ylim=(len(groups), 0.0 if not marks else -0.55))
    axes.set_xlabel(f"{unit} since the run began", fontsize=9, color=hex_color(FAINT))
    axes.set_ylabel("worker", fontsize=9, color=hex_color(FAINT))
    axes.tick_params(length=0, colors=hex_color(INK), labelsize=9)
    axes.spines[:].set_visible(False)
    _legend(figure, {f"{NAMES[kind]}  {100 * found.share(kind):.1f} %": CLASS_COLORS[kind] for kind in kinds})
    figure.suptitle(
        f"{run}: where the time went",
        x=0.012,
        ha="left",
        fontsize=14,
        fontweight="bold",
        color=hex_color(INK),
    )
    axes.set_title(headline(found), loc="left", fontsize=9.5, color=hex_color(FAINT))
    return save_figure(figure, path)


def _shares(
    slices: Sequence[tuple[TimeSlice, int]],
    workers: int,
    kinds: Sequence[TimeClass],
    edges: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The share of each class in each column of time, shape (classes, columns); 0 where nobody was under a driver.

    Args:
        slices: each with the number of workers whose time it is.
    """
    found = np.zeros((len(kinds), len(edges) - 1))
    width = edges[1] - edges[0]
    for one, count in slices:
        if one.end <= one.begin:
            continue
        first, last = np.clip(
            np.searchsorted(edges, (one.begin, one.end), side="right") - 1, 0, len(edges) - 2
        )
        inside = np.minimum(edges[first + 1 : last + 2], one.end) - np.maximum(
            edges[first : last + 1], one.begin
        )
        part = np.clip(inside, 0.0, None) / (one.end - one.begin) / width / workers * count
        for row, kind in enumerate(kinds):
            if seconds := one.seconds.get(kind):
                found[row, first : last + 1] += seconds * part
    return found


def _lane(
    axes: Any,
    lane: int,
    shares: NDArray[np.float64],
    edges: NDArray[np.float64],
    kinds: Sequence[TimeClass],
) -> None:
    bottom = lane + 0.9
    axes.fill_between(edges[[0, -1]], lane, bottom, color=hex_color(FRAME), linewidth=0, zorder=0)
    tops = bottom - 0.9 * np.minimum(np.cumsum(shares, axis=0), 1.0)
    below = np.full(shares.shape[1], bottom)
    for kind, top in zip(kinds, tops, strict=True):
        if (top < below - 1e-9).any():
            low, high = (np.append(line, line[-1]) for line in (below, top))
            axes.fill_between(edges, low, high, step="post", color=hex_color(CLASS_COLORS[kind]), linewidth=0)
        below = top


def _marks(axes: Any, marks: Sequence[tuple[float, str]], lanes: int) -> None:
    """Lines where something happened; of texts that would overlap only the first is written."""
    right = -np.inf
    span = axes.get_xlim()[1] if not marks else max(place for place, _ in marks)
    for place, text in marks:
        axes.plot([place, place], [-0.1, lanes], color=hex_color(INK), linewidth=0.8)
        if place > right:
            axes.text(place, -0.18, text, fontsize=7.5, color=hex_color(INK), ha="left", va="bottom")
            right = place + 0.014 * span * len(text)


def _legend(figure: Any, names: Mapping[str, Color]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=hex_color(color), label=name) for name, color in names.items()]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=9, handlelength=1.0
    )
