"""Accuracy against what it costs, as the papers draw it: one point a model, families joined by lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from convmlp_platform.pictures.style import FAINT, INK, class_color, hex_color

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
