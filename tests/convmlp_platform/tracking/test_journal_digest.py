"""A journal of any length becomes curves of a few hundred points; what a restart did again counts once."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.tracking.journal import MetricsRecord, Status, metric_history
from convmlp_platform.tracking.journal_digest import MOST_POINTS, MetricSeries, TimeMarks, digest_of


def series_of(points: list[tuple[int, float]]) -> MetricSeries:
    series = MetricSeries()
    for step, value in points:
        series.add(step, value)
    return series


def test_few_points_are_kept_as_they_are() -> None:
    series = series_of([(step, float(step % 7)) for step in range(1, MOST_POINTS)])
    assert series.is_exact and [bucket.mean for bucket in series.buckets] == [
        float(step % 7) for step in range(1, MOST_POINTS)
    ]


def test_many_points_keep_their_range_mean_and_order() -> None:
    count = 100_000
    values = [math.sin(step / 1000) + (5.0 if step == 70_001 else 0.0) for step in range(count)]
    series = series_of(list(enumerate(values)))
    assert MOST_POINTS <= len(series.buckets) <= 2 * MOST_POINTS
    assert sum(bucket.count for bucket in series.buckets) == count
    assert sum(bucket.total for bucket in series.buckets) == pytest.approx(sum(values))
    assert (min(b.low for b in series.buckets), max(b.high for b in series.buckets)) == (
        min(values),
        max(values),
    )
    places = [step for bucket in series.buckets for step in (bucket.first, bucket.last)]
    assert places == sorted(places)
    assert series.buckets[-1].last == count - 1


def test_a_restart_s_steps_take_the_place_of_those_it_did_again() -> None:
    series = series_of([(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0), (4, math.nan), (5, 5.0)])
    assert [(b.last, b.mean) for b in series.buckets] == [(1, 1.0), (2, 20.0), (5, 5.0)]
    assert series.not_finite == 1


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(-1e6, 1e6)), max_size=60))
def test_whatever_comes_the_buckets_are_in_order(points: list[tuple[int, float]]) -> None:
    series = series_of(points)
    steps = [(bucket.first, bucket.last) for bucket in series.buckets]
    assert all(first <= last for first, last in steps)
    assert all(before[1] < after[0] for before, after in pairwise(steps))
    if points:
        assert series.buckets[-1].last == points[-1][0]


def test_marks_are_thinned_evenly() -> None:
    marks = TimeMarks()
    for number in range(10_000):
        marks.add(float(number), number)
    gaps = {after[1] - before[1] for before, after in pairwise(marks.kept)}
    assert marks.count == 10_000 and len(marks.kept) <= 600 and gaps == {marks.every}


def test_a_journal_is_read_as_it_is_by_others(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    records = [Status(status="RUNNING")]
    lines = [record.model_dump_json() for record in records]
    lines += [
        MetricsRecord(step=step, values={"train/loss": 1.0 / step}).model_dump_json()
        for step in range(1, 200)
    ]
    lines.insert(50, '{"kind": "metrics", "step": -1}')
    path.write_text("\n".join(lines) + '\n{"kind":"metr')
    found = digest_of(path)
    points = [(bucket.last, bucket.mean) for bucket in found.series["train/loss"].buckets]
    assert points == [(step, values["train/loss"]) for step, values in metric_history(path)]
    assert found.status is not None
    assert (found.starts, found.status.status, found.last_step) == (1, "RUNNING", 199)
    assert digest_of(tmp_path / "none").series == {}
