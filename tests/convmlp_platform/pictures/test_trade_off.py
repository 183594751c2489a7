"""Accuracy against cost: what is in the picture."""

from __future__ import annotations

import pytest

from convmlp_platform.pictures.charts import Point, trade_off

POINTS = [
    Point("convmlp-l", "convmlp", 80.2, 42_700_000, 9_900_000_000),
    Point("convmlp-s", "convmlp", 76.8, 9_000_000, 2_400_000_000),
    Point("resnet50", "resnet", 76.1, 25_600_000, 4_100_000_000),
    Point("mixer-b16", "mixer", 76.4, 59_900_000, None),
]


def test_each_model_is_a_point_and_families_are_joined_from_small_to_large() -> None:
    parameters, macs = trade_off(POINTS, "top-1 (%)", title="t").axes
    drawn = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in parameters.lines}
    assert drawn == {(9.0, 42.7): (76.8, 80.2), (25.6,): (76.1,), (59.9,): (76.4,)}
    assert {text.get_text() for text in parameters.texts} == {point.label for point in POINTS}
    assert {text.get_text() for text in macs.texts} == {"convmlp-s", "convmlp-l", "resnet50"}
    assert (parameters.get_xlabel(), macs.get_xlabel()) == ("parameters (M)", "MACs (G)")


def test_every_point_lies_within_the_axes() -> None:
    for axes in trade_off(POINTS, "top-1 (%)", title="t").axes:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        for line in axes.lines:
            assert all(left < x < right for x in line.get_xdata())
            assert all(low < y < high for y in line.get_ydata())


@pytest.mark.parametrize("points", [POINTS[:1], [POINTS[0], POINTS[0]], POINTS[3:]])
def test_few_or_equal_points_are_drawn_too(points: list[Point]) -> None:
    assert len(trade_off(points, "top-1 (%)", title="t").axes) == (1 if points[0].macs is None else 2)


def test_costs_far_apart_are_on_a_logarithmic_scale() -> None:
    near, far = POINTS[:2], [*POINTS[:2], Point("vit-h", "vit", 85.0, 632_000_000, 167_000_000_000)]
    assert trade_off(near, "s", title="t").axes[0].get_xscale() == "linear"
    assert trade_off(far, "s", title="t").axes[0].get_xscale() == "log"
