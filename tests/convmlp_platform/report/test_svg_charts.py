"""Charts: points where they belong, axes that say so, text escaped."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from convmlp_platform.report.svg_bars import (
    BarPart,
    TimelineBar,
    TimelineLane,
    stacked_bars,
    timeline,
)
from convmlp_platform.report.svg_charts import ChartAxis, ChartLine, line_chart, plain_number, ticks_within


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_a_curve_goes_through_its_points() -> None:
    lines = [ChartLine("a <b>", [(0.0, 0.0), (10.0, 5.0), (20.0, 10.0)]), ChartLine("other", [(20.0, 1.0)])]
    svg = line_chart(lines, title="t & t", y_label="loss")
    root = ElementTree.fromstring(svg)  # well-formed, so escaped
    path, _ = (element.attrib["points"] for element in root.iter("polyline"))
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in path.split())
    assert x0 < x1 < x2 and y0 > y1 > y2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert {"a <b>", "other", "loss", "step", "0", "10", "20"} <= set(texts(svg))
    assert len(list(root.iter("circle"))) == 4
    assert "from 0 at step 0 to 10 at step 20" in svg


def test_values_over_decades_are_drawn_on_a_logarithmic_scale() -> None:
    wide = line_chart([ChartLine("a", [(1.0, 1000.0), (2.0, 1.0), (3.0, 0.001)])], title="t", y_label="loss")
    assert "loss (log)" in texts(wide)
    for values in ([0.0, 1000.0], [-1.0, 5.0], [1.0, 100.0]):
        points = [(float(place), value) for place, value in enumerate(values)]
        assert "loss" in texts(line_chart([ChartLine("a", points)], title="t", y_label="loss"))


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9, 1e30])
def test_one_point_or_none_is_no_trouble(value: float) -> None:
    svg = line_chart([ChartLine("a", [(7.0, value)]), ChartLine("none", [])], title="t", y_label="y")
    assert "nan" not in svg and "inf" not in svg
    assert "a" not in texts(svg)  # one curve needs no legend: the chart's title names it
    ElementTree.fromstring(line_chart([], title="t", y_label="y"))


def test_ticks_are_round_and_within() -> None:
    assert ticks_within(0.0, 10.0, 5) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert ticks_within(3.0, 3.0, 5) == [3.0]
    axis = ChartAxis.over([0.5, 80.0], 0.0, 100.0, is_log=True)
    assert axis.ticks(5) == pytest.approx([0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0])
    assert axis.at(0.5 / 1.2) == pytest.approx(0.0) and axis.at(80.0 * 1.2) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1200.0, "1,200"),
        (0.0415, "0.0415"),
        (5e-5, "5e-05"),
        (1234.56, "1,234.6"),
        (99.721, "99.72"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert plain_number(value) == text


def test_bars_have_the_lengths_of_their_parts() -> None:
    svg = stacked_bars([("all", [BarPart("a", 3.0, "three"), BarPart("b", 1.0, "one")])], title="t")
    rectangles = list(ElementTree.fromstring(svg).iter("rect"))
    first, second = (float(one.attrib["width"]) for one in rectangles)
    assert first == pytest.approx(3 * second, rel=0.01)
    assert float(rectangles[1].attrib["x"]) == pytest.approx(
        float(rectangles[0].attrib["x"]) + first, abs=0.2
    )


def test_a_timeline_has_bounded_marks_in_their_lanes() -> None:
    lanes = [
        TimelineLane(
            "training", bars=[TimelineBar(0.0, 50.0, "broken", "x"), TimelineBar(60.0, 100.0, "clean", "y")]
        ),
        TimelineLane("checkpoints", marks=[(n / 100, "c") for n in range(10_000)]),
    ]
    svg = timeline(lanes, title="t", description="d", unit="seconds", divisor=1.0)
    assert len(re.findall(r'<path class="mark tick"', svg)) < 500
    assert {"training", "checkpoints", "seconds since the run began"} <= set(texts(svg))
    first, second = (one.attrib for one in ElementTree.fromstring(svg).iter("rect"))
    assert float(first["x"]) + float(first["width"]) < float(second["x"])
    ElementTree.fromstring(timeline([], title="t", description="d", unit="s", divisor=1.0))
