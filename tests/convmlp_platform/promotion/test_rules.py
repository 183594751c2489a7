"""The verdict on a candidate: tests against their definitions, outcomes against the libraries, each rule alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convmlp.tasks.coco_metrics import CocoMetrics
from convmlp_platform.config.promote_job import RulesSection
from convmlp_platform.errors import DataError
from convmlp_platform.promotion.measure import _Detection
from convmlp_platform.promotion.outcomes import (
    ClassificationOutcomes,
    DetectionOutcomes,
    Outcomes,
    SegmentationOutcomes,
    from_bytes,
    to_bytes,
)
from convmlp_platform.promotion.paired import compare, mcnemar
from convmlp_platform.promotion.rules import Measured, judge
from convmlp_platform.registry.training_samples import record_of, seen

N, CLASSES = 600, 4
NONE_SEEN = np.zeros(N, np.int64)


def classifier(wrong: int, first: int = 0, sure: float = 0.9, confused: int = 1) -> ClassificationOutcomes:
    """Of `N` images in turn of each class, `wrong` from image `first` on are taken for another class."""
    truth = np.arange(N) % CLASSES
    said = truth.copy()
    chosen = np.arange(first, first + wrong)
    said[chosen] = (said[chosen] + confused) % CLASSES
    sureness = np.full(N, sure)
    return ClassificationOutcomes(np.arange(N), CLASSES, 0.3, truth, said, sureness, np.full(N, 0.3))


def measured(version: str, outcomes: Outcomes | None, **more: Any) -> Measured:
    return Measured(version, outcomes, **({"seen": NONE_SEEN} | more))


OLD = measured("1", classifier(60))


def verdict(candidate: Measured, champion: Measured | None = OLD, **rules: Any) -> tuple[bool, str]:
    found = judge(candidate, champion, RulesSection(**rules))
    return found.moves, found.reason


@pytest.mark.parametrize(
    ("candidate", "champion", "rules", "moves", "reason"),
    [
        (classifier(30), OLD, {}, True, "top1 95.00 %, +5.00 "),
        (classifier(61), OLD, {}, False, "to 90.00 % of the champion: it is not better"),
        (classifier(60), OLD, {}, False, "+0.00 "),
        (classifier(59), OLD, {}, False, "so much comes by chance with p = 1"),
        (classifier(61), OLD, {"require": "not_worse", "margin": 1.0}, True, "-0.17"),
        (classifier(75), OLD, {"require": "not_worse", "margin": 1.0}, False, "it may be worse by up to"),
        (classifier(50), OLD, {"margin": 2.0}, False, "must be better by 2 points"),
        (classifier(0, sure=0.5), OLD, {}, False, "its confidence is 50.00 points off its accuracy"),
        (classifier(0, sure=0.5), OLD, {"max_calibration_loss": 60}, True, "top1 100.00 %"),
        (classifier(10), None, {}, True, "first champion; top1 98.33 %"),
        (classifier(450), None, {}, False, "top1 25.00 % on 600 images is not beyond what the commonest class gives"),
        (classifier(10), Measured("7", failure="no such file"), {}, True, "version 7, the champion, can't be judged"),
        (classifier(440), Measured("7", failure="no such file"), {}, False, "is not beyond what the commonest class"),
        (None, OLD, {}, False, "version 2 can't be judged: it was not measured"),
        (replace(classifier(0), mean_loss=float("nan")), OLD, {}, False, "what it answers are not all finite numbers"),
        (replace(classifier(0), confidence=np.full(N, np.inf)), OLD, {}, False, "not all finite numbers"),
        (classifier(0), measured("1", replace(classifier(0), mean_loss=float("nan"))), {}, True, "the champion, can't"),
    ],
)  # fmt: skip
def test_each_rule(
    candidate: Outcomes | None, champion: Measured | None, rules: dict[str, Any], moves: bool, reason: str
) -> None:
    found, said = verdict(measured("2", candidate), champion, **rules)
    assert (found, reason in said) == (moves, True), said


def test_a_class_that_is_given_up_is_a_reason() -> None:
    old, new = classifier(100), classifier(0)
    said = new.said.copy()
    said[(new.truth == 2) & (np.arange(N) % 8 < 4)] = 3
    moves, reason = verdict(measured("2", replace(new, said=said)), measured("1", old))
    assert not moves and reason.startswith("class 2 loses ") and "rules.max_class_loss allows 10" in reason
    assert verdict(measured("2", replace(new, said=said)), measured("1", old), max_class_loss=100)[0]


def test_who_was_trained_on_the_images_is_no_candidate() -> None:
    some = NONE_SEEN.copy()
    some[:7] = 1
    moves, reason = verdict(measured("2", classifier(0, sure=0.97), seen=some))
    assert not moves and "was trained on 7 of the 600 images that it would be judged on (1.2%" in reason
    found = judge(measured("2", classifier(0, sure=0.97), seen=some), OLD, RulesSection(max_seen_share=0.02))
    assert found.moves and found.evidence["images"] == 593, "they are left out for both"
    some[:] = 1
    assert (
        "no image is left"
        in verdict(measured("2", classifier(0, sure=0.97), seen=some), max_seen_share=1.0)[1]
    )
    assert (
        "nobody knows what version 2 was trained on"
        in verdict(measured("2", classifier(0, sure=0.97), seen=None))[1]
    )
    assert verdict(measured("2", classifier(0, sure=0.97), seen=None), allow_unknown_training_data=True)[0]
    cheating_holder = measured("1", classifier(0, sure=0.97), seen=np.arange(N) < 300)
    assert (
        judge(measured("2", classifier(10, 400)), cheating_holder, RulesSection()).evidence["images"] == 300
    )


def test_latency_has_limits() -> None:
    slow, fast = (
        measured("2", classifier(0, sure=0.97), latency_ms=9.0),
        measured("1", classifier(60), latency_ms=4.0),
    )
    assert verdict(slow, fast)[0]
    assert "takes it 9.0 ms, rules.max_latency_ms allows 8" in verdict(slow, fast, max_latency_ms=8)[1]
    assert (
        "2.25 times the champion's 4.0: rules.max_latency_ratio"
        in verdict(slow, fast, max_latency_ratio=2)[1]
    )
    assert verdict(slow, fast, max_latency_ratio=2.3)[0]


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_sign_test(gained: int, lost: int) -> None:
    from math import comb

    n, extreme = gained + lost, min(gained, lost)
    expected = min(1.0, 2 * sum(comb(n, k) for k in range(extreme + 1)) / 2**n)
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 2**32), st.floats(0.02, 0.98))
def test_a_verdict_needs_more_than_chance(seed: int, share: float) -> None:
    """Of two models that are alike, the second wins seldom, and never against the interval."""
    chance = np.random.default_rng(seed)
    truth = np.zeros(N, np.int64)
    models = [
        ClassificationOutcomes(
            np.arange(N),
            2,
            0.1,
            truth,
            (chance.random(N) > share).astype(np.int64),
            np.ones(N) * share,
            np.ones(N),
        )
        for _ in range(2)
    ]
    found = compare(models[0], models[1], np.ones(N, np.int64), 0.95)
    assert found.low <= found.difference <= found.high and 0 <= found.p_value <= 1
    assert found.candidate == pytest.approx(100 * models[0].right.mean())
    again = compare(models[1], models[0], np.ones(N, np.int64), 0.95)
    assert again.p_value == found.p_value and again.difference == pytest.approx(-found.difference)


def segmenter(seed: int, share: float) -> SegmentationOutcomes:
    chance = np.random.default_rng(seed)
    true = chance.integers(1, 50, (40, 3))
    both = (true * share).astype(np.int64)
    said = both + np.roll(true - both, 1, axis=1)
    return SegmentationOutcomes(np.arange(40), 3, 0.1, both, true, said)


def test_segmentation_is_compared_by_bootstrap() -> None:
    old, new = segmenter(1, 0.7), segmenter(1, 0.8)
    zero = np.zeros(40, np.int64)
    moves, reason = verdict(measured("2", new, seen=zero), measured("1", old, seen=zero), max_class_loss=50)
    assert moves and reason.startswith("miou ")
    assert not verdict(measured("2", old, seen=zero), measured("1", new, seen=zero))[0]
    assert not verdict(measured("2", old, seen=zero), measured("1", old, seen=zero))[0]
    weights = np.ones(40, np.int64)
    both, either = old.both.sum(0), (old.true + old.said - old.both).sum(0)
    assert old.value(weights) == pytest.approx(100 * (both / either).mean())


def test_detection_has_pycocotools_ap() -> None:
    chance = np.random.default_rng(3)
    metrics = CocoMetrics([3, 7, 9])
    watch = _Detection(3, metrics)
    for image in range(12):
        corners = chance.uniform(0, 60, (5, 2))
        boxes = np.concatenate([corners, corners + chance.uniform(8, 40, (5, 2))], 1)
        kinds = chance.integers(0, 3, 5)
        objects = [
            {"bbox": [*box[:2], *(box[2:] - box[:2])], "category_id": [3, 7, 9][kind], "iscrowd": int(place == 0),
             "area": float(np.prod(box[2:] - box[:2]))}
            for place, (box, kind) in enumerate(zip(boxes, kinds, strict=True))
        ]  # fmt: skip
        found = {
            "boxes": torch.tensor(boxes + chance.normal(0, 2, boxes.shape)),
            "scores": torch.tensor(chance.random(5)),
            "labels": torch.tensor(np.where(chance.random(5) < 0.8, kinds, 0)),
        }
        target = {"image_id": 100 - image, "size": (100, 100), "objects": objects}
        metrics.update([found], [target])
        batch: Any = type("Batch", (), {"sample_ids": torch.tensor([image])})
        watch.update(batch, [found], [target])
    outcomes = watch.outcomes(0.5)
    assert isinstance(outcomes, DetectionOutcomes)
    expected = metrics.compute()
    assert outcomes.value(outcomes.all_images()) == pytest.approx(100 * expected["box_ap"], abs=1e-9)
    by_class = outcomes.class_values(outcomes.all_images())
    assert by_class == pytest.approx([100 * metrics.class_ap["box"][number] for number in (3, 7, 9)])
    none = np.zeros(12, np.int64)
    assert not judge(
        measured("2", outcomes, seen=none), measured("1", outcomes, seen=none), RulesSection()
    ).moves
    assert judge(measured("2", outcomes, seen=none), None, RulesSection()).moves


@pytest.mark.parametrize("outcomes", [classifier(9), segmenter(4, 0.5)])
def test_outcomes_cross_processes_as_they_are(outcomes: Outcomes) -> None:
    again = from_bytes(to_bytes(outcomes))
    assert type(again) is type(outcomes) and again.value(outcomes.all_images()) == outcomes.value(
        outcomes.all_images()
    )
    assert again.num_classes == outcomes.num_classes and again.finite
    for damage in (b"", b"PK", to_bytes(outcomes)[:100]):
        with pytest.raises(DataError, match="can't be read"):
            from_bytes(damage)


@given(st.lists(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)))
def test_seen_samples_are_those_of_the_record(trained: list[int], judged: list[int]) -> None:
    content = record_of(np.array(trained, np.uint64))
    found = seen(np.array(judged + trained, np.uint64), content)
    assert found.tolist() == [one in set(trained) for one in judged + trained]
    assert len(content) == 8 * len(set(trained))


def test_two_candidates_at_once_are_judged_alike() -> None:
    for first, second in product((20, 30, 40), repeat=2):
        one = judge(measured("2", classifier(first)), measured("3", classifier(second)), RulesSection())
        other = judge(measured("3", classifier(second)), measured("2", classifier(first)), RulesSection())
        assert not (one.moves and other.moves)
