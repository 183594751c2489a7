"""The verdict on a candidate, from what was measured of it and of the champion. Pure: no registry, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convmlp_platform.config.promote_job import RulesSection
from convmlp_platform.promotion.outcomes import ClassificationOutcomes, Outcomes, Weights
from convmlp_platform.promotion.paired import Comparison, compare

_CHANCE = 0.01
"""A first champion must beat the commonest class with no more than this probability of doing so by chance."""
_LISTED = 5


@dataclass(frozen=True)
class Measured:
    """One registered version, measured.

    Args:
        version: its number.
        outcomes: None where it can't be measured; then `failure` says why.
        seen: shape (images,), whether its training has seen each image; None: nobody knows what it was trained on.
        latency_ms: median milliseconds of a forward pass of one image; None: not measured.
    """

    version: str
    outcomes: Outcomes | None = None
    failure: str = ""
    seen: Weights | None = None
    latency_ms: float | None = None

    @property
    def problem(self) -> str:
        """The reason why it can't be compared, or nothing."""
        if self.outcomes is None:
            return self.failure or "it was not measured"
        return "" if self.outcomes.finite else "what it answers are not all finite numbers"


@dataclass(frozen=True)
class Verdict:
    """Whether the alias moves, in one sentence, and the figures that say so (plain JSON values)."""

    moves: bool
    reason: str
    evidence: dict[str, Any]


def judge(
    candidate: Measured, champion: Measured | None, rules: RulesSection, classes: Sequence[str] = ()
) -> Verdict:
    """The verdict by the stated rules, in this order; the first that refuses is the reason.

    1. The candidate can be measured, and its answers are finite.
    2. It was not trained on the images (at most `max_seen_share` of them; those are left out for both).
    3. It is within the limit of latency.
    4. Without a champion, or with one that can't be measured: it beats the commonest class beyond chance.
    5. Else it is better than the champion (`rules.require`), and no class, calibration or latency loses more than is
       allowed.

    Args:
        classes: their names, for the sentence; default: it numbers them.
    """
    evidence: dict[str, Any] = {"candidate": candidate.version, "champion": champion and champion.version}

    def refused(reason: str) -> Verdict:
        return Verdict(False, reason, evidence)

    if candidate.problem:
        return refused(f"version {candidate.version} can't be judged: {candidate.problem}")
    assert candidate.outcomes is not None
    images, reason = _unseen(candidate, champion, rules, evidence)
    if reason:
        return refused(reason)
    limit = rules.max_latency_ms
    evidence["latency_ms"] = candidate.latency_ms
    if limit is not None and candidate.latency_ms is not None and candidate.latency_ms > limit:
        return refused(
            f"one image takes it {candidate.latency_ms:.1f} ms, rules.max_latency_ms allows {limit:g}"
        )
    evidence["images"] = int(np.sum(images))
    evidence[candidate.outcomes.metric] = round(candidate.outcomes.value(images), 4)
    if champion is None or champion.problem:
        return _first(candidate, champion, images, evidence)
    assert champion.outcomes is not None
    if type(champion.outcomes) is not type(candidate.outcomes):
        return refused(f"version {champion.version}, the champion, is for {champion.outcomes.kind}")
    found = compare(candidate.outcomes, champion.outcomes, images, rules.confidence)
    evidence["comparison"] = _figures(found)
    for reason in (
        _not_better(found, rules),
        _class_losses(candidate.outcomes, champion.outcomes, images, found, rules, evidence, classes),
        _calibration_loss(candidate.outcomes, champion.outcomes, images, rules, evidence),
        _latency_loss(candidate, champion, rules, evidence),
    ):
        if reason:
            return refused(reason)
    return Verdict(True, f"{_shown(found)} of version {champion.version}", evidence)


def _unseen(
    candidate: Measured, champion: Measured | None, rules: RulesSection, evidence: dict[str, Any]
) -> tuple[Weights, str]:
    """The images to compare on, as weights 0 and 1, and why there can't be a comparison."""
    assert candidate.outcomes is not None
    images = np.ones(len(candidate.outcomes.samples), np.int64)
    for who, one in (("candidate", candidate), ("champion", champion)):
        if one is None or one.problem:
            continue
        if one.seen is None:
            evidence[f"{who}_seen"] = "not known"
            if who == "candidate" and not rules.allow_unknown_training_data:
                return images, (
                    f"nobody knows what version {one.version} was trained on, so these images may be among it "
                    "(rules.allow_unknown_training_data: true takes that risk)"
                )
            continue
        share = float(np.mean(one.seen))
        evidence[f"{who}_seen"] = int(np.sum(one.seen))
        if who == "candidate" and share > rules.max_seen_share:
            return images, (
                f"version {one.version} was trained on {int(np.sum(one.seen)):,} of the {len(images):,} images that "
                f"it would be judged on ({share:.1%}, rules.max_seen_share allows {rules.max_seen_share:.1%})"
            )
        images = images * (1 - np.asarray(one.seen, np.int64))
    if not images.any():
        return images, "no image is left that neither model was trained on"
    return images, ""


def _first(
    candidate: Measured, champion: Measured | None, images: Weights, evidence: dict[str, Any]
) -> Verdict:
    outcomes = candidate.outcomes
    assert outcomes is not None
    who = "first champion"
    if champion is not None:
        who = f"version {champion.version}, the champion, can't be judged: {champion.problem}"
        evidence["champion_problem"] = champion.problem
    value = outcomes.value(images)
    if isinstance(outcomes, ClassificationOutcomes):
        from scipy.stats import binomtest

        counts = outcomes.class_counts(images)
        commonest, total = float(counts.max() / counts.sum()), int(counts.sum())
        right = round(value / 100.0 * total)
        chance = float(binomtest(right, total, min(commonest, 1.0), alternative="greater").pvalue)
        evidence["chance"] = {"commonest_class": round(100.0 * commonest, 4), "p_value": chance}
        if chance > _CHANCE:
            return Verdict(
                False,
                f"top1 {value:.2f} % on {total:,} images is not beyond what the commonest class gives "
                f"({100.0 * commonest:.2f} %; p = {chance:.2g})",
                evidence,
            )
    elif not value > 0.0:
        return Verdict(False, f"{outcomes.metric} is {value:.2f} %: it finds nothing", evidence)
    return Verdict(True, f"{who}; {outcomes.metric} {value:.2f} %", evidence)


def _not_better(found: Comparison, rules: RulesSection) -> str:
    if rules.require == "not_worse":
        if found.low < -rules.margin:
            return (
                f"{_shown(found)} of the champion: it may be worse by up to {-found.low:.2f} points, rules.margin "
                f"allows {rules.margin:g}"
            )
        return ""
    if found.difference < max(rules.margin, 0.0) or found.difference <= 0:
        return f"{_shown(found)} of the champion" + (
            f", and must be better by {rules.margin:g} points" if rules.margin else ": it is not better"
        )
    if found.p_value > 1.0 - rules.confidence:
        return (
            f"{_shown(found)} of the champion: so much comes by chance with p = {found.p_value:.2g} "
            f"(rules.confidence {rules.confidence:g})"
        )
    return ""


def _class_losses(
    candidate: Outcomes,
    champion: Outcomes,
    images: Weights,
    found: Comparison,
    rules: RulesSection,
    evidence: dict[str, Any],
    classes: Sequence[str],
) -> str:
    """Classes that lose more than is allowed, and lose beyond chance."""
    loss = champion.class_values(images) - candidate.class_values(images)
    order = np.argsort(-np.nan_to_num(loss, nan=-np.inf), kind="stable")
    evidence["class_losses"] = {
        str(label): round(float(loss[label]), 4) for label in order[:_LISTED].tolist() if loss[label] > 0
    }
    for label in order.tolist():
        if not loss[label] > rules.max_class_loss:
            break
        if found.class_p_values[label] > 1.0 - rules.confidence:
            continue
        name = repr(classes[label]) if classes else label
        return f"class {name} loses {loss[label]:.2f} points, rules.max_class_loss allows {rules.max_class_loss:g}"
    return ""


def _calibration_loss(
    candidate: Outcomes, champion: Outcomes, images: Weights, rules: RulesSection, evidence: dict[str, Any]
) -> str:
    if not isinstance(candidate, ClassificationOutcomes) or not isinstance(champion, ClassificationOutcomes):
        return ""
    new, old = candidate.calibration_error(images), champion.calibration_error(images)
    evidence["calibration_error"] = {"candidate": round(new, 4), "champion": round(old, 4)}
    if new - old > rules.max_calibration_loss:
        return (
            f"its confidence is {new:.2f} points off its accuracy, the champion's {old:.2f}: "
            f"rules.max_calibration_loss allows {rules.max_calibration_loss:g} more"
        )
    return ""


def _latency_loss(
    candidate: Measured, champion: Measured, rules: RulesSection, evidence: dict[str, Any]
) -> str:
    if candidate.latency_ms is None or champion.latency_ms is None:
        return ""
    ratio = candidate.latency_ms / champion.latency_ms
    evidence["latency_ratio"] = round(ratio, 4)
    if rules.max_latency_ratio is not None and ratio > rules.max_latency_ratio:
        return (
            f"one image takes it {candidate.latency_ms:.1f} ms, {ratio:.2f} times the champion's "
            f"{champion.latency_ms:.1f}: rules.max_latency_ratio allows {rules.max_latency_ratio:g}"
        )
    return ""


def _shown(found: Comparison) -> str:
    return (
        f"{found.metric} {found.candidate:.2f} %, {found.difference:+.2f} "
        f"[{found.low:+.2f}, {found.high:+.2f}] to {found.champion:.2f} %"
    )


def _figures(found: Comparison) -> dict[str, Any]:
    figures = {
        name: round(float(getattr(found, name)), 6)
        for name in ("candidate", "champion", "difference", "low", "high", "p_value")
    }
    return {"metric": found.metric, "method": found.method, "images": found.images, **figures}
