from __future__ import annotations

import pytest

from convmlp_platform.config.sections.task_section import BEST_METRICS, DATASETS, best_score


def test_every_task_has_a_metric_to_be_judged_by() -> None:
    assert BEST_METRICS.keys() == DATASETS.keys()
    for metric in BEST_METRICS.values():
        assert best_score({"eval/loss": 9.0, f"eval/{metric}": 1.5}) == (metric, 1.5)


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ({"eval/box_ap": 30.0, "eval/mask_ap": 25.0}, ("mask_ap", 25.0)),
        ({"eval/top5": 90.0, "eval/top1": 70.0}, ("top1", 70.0)),
        ({"eval/loss": 1.0, "train/top1": 3.0}, None),
        ({}, None),
    ],
)
def test_of_an_evaluation_the_score_that_counts(
    metrics: dict[str, float], found: tuple[str, float] | None
) -> None:
    assert best_score(metrics) == found
