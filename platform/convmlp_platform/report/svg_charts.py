"""Charts as inline SVG that the page's style colours: they follow its dark and light scheme, carry a title and a
description for screen readers, and are text to search and select.

Colours are classes (`s0`, `s1`, ...), never the only sign: lines differ in their dashes, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup

WIDTH = 680.0
"""Of a drawing as wide as the page; a chart takes half of it, so that its letters have the same size."""
_WIDTH, _HEIGHT = 480.0, 260.0
_LEFT, RIGHT, _BOTTOM = 52.0, 16.0, 40.0
LETTER = 6.6
"""Width of a letter of 12 px, about."""
_DASHES = ("none", "7 4", "2 3", "9 3 2 3", "4 2", "1 2")
_LINES = len(_DASHES)
_LOG_FROM = 200.0
_IDS = count(1)


@dataclass(frozen=True)
class ChartLine:
    """A curve; `points` (x, y) in order, `band` (x, low, high) where a point stands for several."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


def line_chart(lines: Sequence[ChartLine], *, title: str, y_label: str, x_label: str = "step") -> Markup:
    """Curves over a common axis. A range of positive values that spans more than two decades is drawn on a logarithmic
    scale."""
    shown = [line for line in lines if line.points][:_LINES]
    values = [y for line in shown for _, y in line.points]
    values += [y for line in shown for _, low, high in line.band for y in (low, high)]
    is_log = bool(values) and min(values) > 0.0 and max(values) >= _LOG_FROM * min(values)
    entries, top = _legend([line.name for line in shown] if len(shown) > 1 else [])
    x_axis = ChartAxis.over([x for line in shown for x, _ in line.points], _LEFT, _WIDTH - RIGHT)
    y_axis = ChartAxis.over(values, _HEIGHT - _BOTTOM, top + 14.0, is_log=is_log, padded=True)
    parts = [_frame(x_axis, y_axis, x_label, y_label + (" (log)" if is_log else ""), top)]
    parts += [
        Markup('<g class="s{}"><line x1="{}" y1="{}" x2="{}" y2="{}" class="line" stroke-dasharray="{}"/></g>').format(
            index, x, y - 4, x + 22, y - 4, _DASHES[index]
        )
        + Markup('<text x="{}" y="{}">{}</text>').format(x + 28, y, line.name)
        for index, (line, (x, y)) in enumerate(zip(shown, entries, strict=False))
    ]  # fmt: skip
    parts += [_curve(line, index, x_axis, y_axis) for index, line in enumerate(shown)]
    return svg(parts, title, _described(shown, x_label), _HEIGHT, _WIDTH)


def _curve(line: ChartLine, index: int, x_axis: ChartAxis, y_axis: ChartAxis) -> Markup:
    parts = []
    if line.band:
        upper = [(x, high) for x, _, high in line.band]
        lower = [(x, low) for x, low, _ in reversed(line.band)]
        parts.append(
            Markup('<polygon class="band" points="{}"/>').format(_path([*upper, *lower], x_axis, y_axis))
        )
    path = _path(line.points, x_axis, y_axis)
    parts.append(
        Markup('<polyline class="line" points="{}" stroke-dasharray="{}"/>').format(path, _DASHES[index])
    )
    if len(line.points) < 40:
        parts += [
            Markup('<circle cx="{}" cy="{}" r="2.4"><title>{}, {}: {}</title></circle>').format(
                px(x_axis.at(x)), px(y_axis.at(y)), line.name, plain_number(x), plain_number(y)
            )
            for x, y in line.points
        ]  # fmt: skip
    return Markup('<g class="s{}">{}</g>').format(index, Markup("").join(parts))


def _path(points: Sequence[tuple[float, float]], x_axis: ChartAxis, y_axis: ChartAxis) -> str:
    return " ".join(f"{px(x_axis.at(x))},{px(y_axis.at(y))}" for x, y in points)


@dataclass(frozen=True)
class ChartAxis:
    """Values low..high on pixels begin..end."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    @classmethod
    def over(
        cls, values: Sequence[float], begin: float, end: float, *, is_log: bool = False, padded: bool = False
    ) -> ChartAxis:
        """An axis that holds all values, with room around where it is `padded`."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        if is_log:
            return cls(low / 1.2, high * 1.2, begin, end, is_log=True)
        span = high - low
        if span <= 0.0:
            span = abs(high) or 1.0
            low, high = low - 0.5 * span, high + 0.5 * span
        elif padded:
            low, high = low - 0.04 * span, high + 0.04 * span
        return cls(low, high, begin, end)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        if self.is_log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, number: int) -> list[float]:
        """Round values within."""
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1.0, 2.0, 5.0) if len(decades) < 5 else (1.0,)
            found = [step * 10.0**decade for decade in decades for step in steps]
            return [tick for tick in found if self.low <= tick <= self.high]
        return ticks_within(self.low, self.high, number)


def ticks_within(low: float, high: float, number: int) -> list[float]:
    """About so many round values from low to high."""
    span = high - low
    if not (span > 0.0 and math.isfinite(span)):
        return [low]
    rough = span / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((one * power for one in (1.0, 2.0, 2.5, 5.0) if one * power >= rough), 10.0 * power)
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(x_axis: ChartAxis, y_axis: ChartAxis, x_label: str, y_label: str, top: float) -> Markup:
    parts = []
    for tick in y_axis.ticks(5):
        y = px(y_axis.at(tick))
        parts.append(
            Markup('<line class="grid" x1="{}" y1="{y}" x2="{}" y2="{y}"/>').format(
                _LEFT, _WIDTH - RIGHT, y=y
            )
        )
        parts.append(
            Markup('<text class="faint" x="{}" y="{}" text-anchor="end">{}</text>').format(
                _LEFT - 6, px(y_axis.at(tick) + 4), plain_number(tick)
            )
        )
    parts += [
        Markup('<text class="faint" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            px(x_axis.at(tick)), _HEIGHT - _BOTTOM + 16, plain_number(tick)
        )
        for tick in x_axis.ticks(6)
    ]
    parts.append(
        Markup('<text class="faint" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _WIDTH - RIGHT, _HEIGHT - 6, x_label
        )
    )
    parts.append(Markup('<text class="faint" x="4" y="{}">{}</text>').format(top + 2, y_label))
    return Markup("").join(parts)


def _legend(names: Sequence[str]) -> tuple[list[tuple[float, float]], float]:
    """The places of entries in rows from left to right, and where the rows end."""
    places, x, y = [], _LEFT, 14.0
    for name in names:
        width = 44.0 + LETTER * len(name)
        if x > _LEFT and x + width > _WIDTH - RIGHT:
            x, y = _LEFT, y + 18.0
        places.append((x, y))
        x += width
    return places, y + 18.0 if names else 14.0


def _described(lines: Sequence[ChartLine], x_label: str) -> str:
    """Each curve's ends and range in words."""
    told = []
    for line in lines:
        values = [y for _, y in line.points]
        (first, begin), (last, end) = line.points[0], line.points[-1]
        told.append(
            f"{line.name}: from {plain_number(begin)} at {x_label} {plain_number(first)} to {plain_number(end)} at "
            f"{x_label} {plain_number(last)}, lowest {plain_number(min(values))}, highest {plain_number(max(values))}"
        )
    return "; ".join(told)


def svg(parts: Sequence[Markup], title: str, description: str, height: float, width: float = WIDTH) -> Markup:
    """A drawing of these parts, with a title and a description for those who can't see it."""
    number = next(_IDS)
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t{n} d{n}">'
        '<title id="t{n}">{title}</title><desc id="d{n}">{description}</desc>{parts}</svg>'
    ).format(
        width=px(width), height=px(height), n=number, title=title, description=description,
        parts=Markup("").join(parts),
    )  # fmt: skip


def plain_number(value: float) -> str:
    """A number as short as its reader needs it: `1,200`, `0.0415`, `5e-05`."""
    size = abs(value)
    if size >= 1e7 or 0.0 < size < 1e-3:
        return f"{value:.3g}"
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if size >= 1000.0 else f"{value:.4g}"


def px(value: float) -> str:
    """A coordinate with a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
