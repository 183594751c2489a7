"""Charts by matplotlib: how they look, values of classes, legible with ten classes and with thousands, and accuracy
against what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.pictures.style import ACCENT, FAINT, INK, class_color, hex_color

ALL_NAMED = 40
"""Up to so many classes each has a bar with its name."""
_EXTREMES = 12
"""Of more classes, so many of the largest and of the smallest are named."""
_LONGEST_NAME = 28


def class_histogram(
    counts: NDArray[np.integer], names: Sequence[str], *, title: str, subtitle: str = "", unit: str = "images"
) -> Any:
    """A matplotlib Figure of `counts`, shape (classes,), by class name.

    Up to 40 classes: a bar each, in the order of the labels. More: all counts from large to small, and below
    it the largest and the smallest classes by name.
    """
    from matplotlib.figure import Figure

    if len(names) <= ALL_NAMED:
        figure = Figure(figsize=(8, 1.5 + 0.3 * len(names)), layout="constrained")
        _count_bars(figure.subplots(), counts, names, unit)
    else:
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.15))
        order = np.argsort(-counts, kind="stable")
        _count_curve(figure.add_subplot(grid[0, :]), counts[order], unit)
        for column, (chosen, heading) in enumerate(_extremes(order, counts)):
            axes = figure.add_subplot(grid[1, column])
            _count_bars(axes, counts[chosen], [names[i] for i in chosen], unit)
            axes.set_title(heading, loc="left", fontsize=10, color=hex_color(INK))
    _headline(figure, title, subtitle)
    return figure


def _headline(figure: Any, title: str, subtitle: str) -> None:
    inch, left = 1 / figure.get_figheight(), 0.15 / figure.get_figwidth()
    figure.text(left, 1 - 0.16 * inch, title, fontsize=14, fontweight="bold", color=hex_color(INK), va="top")
    figure.text(left, 1 - 0.47 * inch, subtitle, fontsize=9.5, color=hex_color(FAINT), va="top")
    bottom = 0.08 * inch
    figure.get_layout_engine().set(rect=(left, bottom, 1 - 2 * left, 1 - 0.75 * inch - bottom))


def _extremes(
    order: NDArray[np.integer], counts: NDArray[np.integer]
) -> list[tuple[NDArray[np.integer], str]]:
    number = min(_EXTREMES, len(order) // 2)
    if counts.min() == counts.max():
        return [(order[:number], f"the first {number} classes"), (order[-number:], f"the last {number}")]
    return [(order[:number], f"the {number} largest classes"), (order[-number:], f"the {number} smallest")]


def _count_bars(axes: Any, counts: NDArray[np.integer], names: Sequence[str], unit: str) -> None:
    top = max(int(counts.max(initial=0)), 1)
    bars(axes, counts, names, [f"{count:,}" for count in counts.tolist()], unit, 1.12 * top)
    _whole_numbers(axes.xaxis)


def _count_curve(axes: Any, counts: NDArray[np.integer], unit: str) -> None:
    top, median = int(counts.max(initial=0)), float(np.median(counts))
    even = counts.min() == top
    note = f"every class has {top:,} {unit}" if even else f"median {median:,.0f}"
    curve(axes, counts, None if even else median, note, "class, from the largest to the smallest", unit)
    if median > 0 and top > 30 * median:
        axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 1.15 * max(top, 1))
    _whole_numbers(axes.yaxis)


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if axis.get_scale() == "linear":
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


# Models whose costs lie further apart than this are drawn on a logarithmic scale.
_LOG_FROM = 8.0
_MARKERS = "osD^vP*X<>"


@dataclass(frozen=True)
class Point:
    """A model. `score` is what is good about it; `parameters` and `macs` are what it costs, None where unknown."""

    label: str
    family: str
    score: float
    parameters: int | None
    macs: int | None


def trade_off(points: Sequence[Point], score: str, *, title: str, subtitle: str = "") -> Any:
    """A matplotlib Figure: `score` over parameters, and over multiply-accumulates."""
    from matplotlib.figure import Figure

    panels: list[tuple[str, Callable[[Point], int | None], float]] = [
        ("parameters (M)", lambda point: point.parameters, 1e6),
        _work_panel(points),
    ]
    shown = [panel for panel in panels if any(panel[1](point) for point in points)]
    families = list(dict.fromkeys(point.family for point in sorted(points, key=lambda one: one.family)))
    figure = Figure(figsize=(0.8 + 5.6 * len(shown), 5.0), layout="constrained")
    drawn = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for number, (axes, (name, cost, unit)) in enumerate(zip(drawn, shown, strict=True)):
        _panel(axes, [(point, value / unit) for point in points if (value := cost(point))], families)
        axes.set_xlabel(name, fontsize=9.5, color=hex_color(FAINT))
        if not number:
            axes.set_ylabel(score, fontsize=9.5, color=hex_color(FAINT))
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=hex_color(INK))
    if subtitle:
        drawn[0].set_title(subtitle, loc="left", fontsize=9.5, color=hex_color(FAINT))
    return figure


def _work_panel(points: Sequence[Point]) -> tuple[str, Callable[[Point], int | None], float]:
    small = max((point.macs or 0 for point in points), default=0) < 1e9
    return (
        ("MACs (M)", lambda point: point.macs, 1e6) if small else ("MACs (G)", lambda point: point.macs, 1e9)
    )


def _panel(axes: Any, places: Sequence[tuple[Point, float]], families: Sequence[str]) -> None:
    from matplotlib.patheffects import withStroke

    for family in families:
        own = sorted(((x, point.score) for point, x in places if point.family == family))
        number = families.index(family)
        axes.plot(
            [x for x, _ in own],
            [y for _, y in own],
            color=hex_color(class_color(number)),
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=8,
            linewidth=1.4,
        )
    _scale(axes, [x for _, x in places], [point.score for point, _ in places])
    for point, x in places:
        axes.annotate(
            point.label,
            (x, point.score),
            _offset(point, x, places, axes.get_xscale() == "log"),
            textcoords="offset points",
            fontsize=9,
            color=hex_color(INK),
            va="center",
            path_effects=[withStroke(linewidth=3, foreground="white")],  # readable where a line passes
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(hex_color(FAINT))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=hex_color(INK), labelsize=9)


def _scale(axes: Any, costs: Sequence[float], scores: Sequence[float]) -> None:
    """Room for the labels to the right of the points."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(costs), max(costs)
    if high > _LOG_FROM * low:
        ratio = high / low
        axes.set_xscale("log")
        axes.set_xlim(low / ratio**0.06, high * ratio**0.35)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        span = (high - low) or high
        axes.set_xlim(max(0.0, low - 0.1 * span), high + 0.35 * span)
    span = (max(scores) - min(scores)) or 1.0
    axes.set_ylim(min(scores) - 0.12 * span, max(scores) + 0.12 * span)


def _offset(point: Point, x: float, places: Sequence[tuple[Point, float]], log: bool) -> tuple[float, float]:
    """Of a label from its point, in typographic points: to the right, a little up or down where a neighbour's label
    would lie upon it."""
    scores = [one.score for one, _ in places]
    height = (max(scores) - min(scores)) or 1.0
    costs = [math.log(cost) if log else cost for _, cost in places]
    width = (max(costs) - min(costs)) or 1.0
    own = math.log(x) if log else x
    shift = 0.0
    for (other, _), cost in zip(places, costs, strict=True):
        if other is point or abs(other.score - point.score) / height > 0.05 or abs(cost - own) / width > 0.3:
            continue
        shift += 7.0 if (point.score, point.label) > (other.score, other.label) else -7.0
    return 9.0, shift


def bars(
    axes: Any, values: Any, names: Sequence[str], texts: Sequence[str], label: str, widest: float
) -> None:
    """A horizontal bar for each value, from top to bottom, with its name before and its text behind it; the axis goes
    to `widest`."""
    places = np.arange(len(names))
    axes.barh(places, values, color=hex_color(ACCENT), height=0.72)
    axes.set_yticks(places, [short(name) for name in names], fontsize=9)
    axes.invert_yaxis()
    for place, value, text in zip(places, values, texts, strict=True):
        axes.text(value + 0.01 * widest, place, text, va="center", fontsize=8, color=hex_color(FAINT))
    axes.set_xlim(0, widest)
    plain(axes, label, "x")


def curve(axes: Any, values: Any, line: float | None, note: str, order: str, label: str) -> None:
    """All values in their order, which `order` describes; a note at the right end of a line, or of the curve."""
    ranks = np.arange(1, len(values) + 1)
    axes.fill_between(ranks, values, step="mid", color=hex_color(ACCENT), alpha=0.25, linewidth=0)
    axes.step(ranks, values, where="mid", color=hex_color(ACCENT), linewidth=1.5)
    if line is not None:
        axes.axhline(line, color=hex_color(FAINT), linewidth=0.9, linestyle=(0, (4, 3)))
    at = (len(values), values[-1] if line is None else line)
    axes.annotate(note, at, (0, 4), textcoords="offset points", ha="right", fontsize=9, color=hex_color(INK))
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.set_xlabel(order, fontsize=9, color=hex_color(FAINT))
    plain(axes, label, "y")


def plain(axes: Any, label: str, along: str) -> None:
    """Only what carries meaning: a light grid along the values, no frame."""
    axes.spines[["top", "right", "bottom" if along == "x" else "left"]].set_visible(False)
    axes.spines[["left" if along == "x" else "bottom"]].set_color(hex_color(FAINT))
    axes.grid(axis=along, alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=hex_color(INK), labelsize=9)
    getattr(axes, f"set_{along}label")(label, fontsize=9, color=hex_color(FAINT))


def short(name: str) -> str:
    """A class's name, cut where it is too long for an axis."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1].rstrip()}…"


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, facecolor="white")
    return path
