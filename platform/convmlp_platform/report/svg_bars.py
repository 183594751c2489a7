"""Bars and marks as inline SVG: where time went, and what happened when. Colours are classes, as in `svg_charts`; bars
stand in the order of their table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from convmlp_platform.report.svg_charts import (
    LETTER,
    RIGHT,
    WIDTH,
    ChartAxis,
    plain_number,
    px,
    svg,
    ticks_within,
)


@dataclass(frozen=True)
class BarPart:
    """A piece of a bar: the class of its colour, its size, and what it is."""

    color: str
    size: float
    name: str


def stacked_bars(bars: Sequence[tuple[str, Sequence[BarPart]]], *, title: str) -> Markup:
    """Bars below one another, each with its label before it; of all, the longest fills the width."""
    longest = max((math.fsum(part.size for part in parts) for _, parts in bars), default=0.0) or 1.0
    margin = 12.0 + LETTER * max((len(label) for label, _ in bars), default=0)
    room = WIDTH - margin - RIGHT
    drawn: list[Markup] = []
    for row, (label, parts) in enumerate(bars):
        y, x = 8.0 + 30.0 * row, margin
        drawn.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(px(margin - 8), y + 16, label)
        )
        for part in parts:
            width = room * part.size / longest
            if width > 0.0:
                drawn.append(
                    Markup(
                        '<rect class="{}" x="{}" y="{}" width="{}" height="22"><title>{}</title></rect>'
                    ).format(part.color, px(x), y, px(width), part.name)
                )
            x += width
    told = "; ".join(f"{label}: {', '.join(part.name for part in parts)}" for label, parts in bars[:8])
    return svg(drawn, title, told, 16.0 + 30.0 * len(bars))


Shape = Literal["tick", "diamond", "cross", "triangle"]


@dataclass(frozen=True)
class TimelineBar:
    """A stretch of time."""

    begin: float
    end: float
    color: str
    name: str


@dataclass(frozen=True)
class TimelineLane:
    """Things of one kind; bars, or marks (time, what) of one shape."""

    label: str
    bars: Sequence[TimelineBar] = ()
    marks: Sequence[tuple[float, str]] = ()
    shape: Shape = "tick"


def timeline(
    lanes: Sequence[TimelineLane], *, title: str, description: str, unit: str, divisor: float
) -> Markup:
    """What happened when: a lane for each kind of thing. Times are seconds, the axis says them divided by `divisor`."""
    times = [0.0, *(bar.end for lane in lanes for bar in lane.bars)]
    times += [time for lane in lanes for time, _ in lane.marks]
    left = 14.0 + LETTER * max((len(lane.label) for lane in lanes), default=0)
    axis = ChartAxis(min(times), max(times) or 1.0, left, WIDTH - RIGHT)
    bottom = 10.0 + 30.0 * len(lanes)
    parts = []
    for tick in ticks_within(axis.low / divisor, axis.high / divisor, 6):
        x = px(axis.at(tick * divisor))
        parts.append(Markup('<line class="grid" x1="{0}" y1="4" x2="{0}" y2="{1}"/>').format(x, bottom))
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="middle" class="faint">{}</text>').format(
                x, bottom + 16, plain_number(tick)
            )
        )
    parts.append(
        Markup('<text x="{}" y="{}" text-anchor="middle" class="faint">{} since the run began</text>').format(
            px((left + WIDTH) / 2), bottom + 34, unit
        )
    )
    for row, lane in enumerate(lanes):
        y = 10.0 + 30.0 * row
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(px(left - 8), y + 15, lane.label)
        )
        parts += [_timeline_bar(bar, axis, y) for bar in lane.bars]
        parts += [_mark(lane.shape, axis.at(time), y + 11, name) for time, name in _apart(lane.marks, axis)]
    return svg(parts, title, description, bottom + 42)


def _timeline_bar(bar: TimelineBar, axis: ChartAxis, y: float) -> Markup:
    begin, end = axis.at(bar.begin), axis.at(bar.end)
    return Markup(
        '<rect class="{}" x="{}" y="{}" width="{}" height="20" rx="2"><title>{}</title></rect>'
    ).format(bar.color, px(begin), y + 1, px(max(1.5, end - begin - 1.0)), bar.name)


def _apart(marks: Sequence[tuple[float, str]], axis: ChartAxis) -> list[tuple[float, str]]:
    """Of marks that would lie upon one another only the first."""
    kept: list[tuple[float, str]] = []
    for time, name in sorted(marks):
        if not kept or axis.at(time) - axis.at(kept[-1][0]) >= 1.5:
            kept.append((time, name))
    return kept


def _mark(shape: Shape, x: float, y: float, name: str) -> Markup:
    path = {
        "tick": f"M{px(x)} {y - 9}v18",
        "diamond": f"M{px(x)} {y - 6}l6 6l-6 6l-6 -6z",
        "cross": f"M{px(x - 5)} {y - 5}l10 10m0 -10l-10 10",
        "triangle": f"M{px(x)} {y - 6}l6 11h-12z",
    }[shape]
    return Markup('<path class="mark {}" d="{}"><title>{}</title></path>').format(shape, path, name)
