"""Whether a difference between two models on the same images is more than chance.

Two accuracies on the same images are compared by the images on which the models differ: McNemar's exact test (Q.
McNemar, Psychometrika 1947). mIoU and AP are no means over images: their difference is computed again for many samples
of the images, drawn with replacement, the same for both models (paired bootstrap; B. Efron, R. Tibshirani, 1993).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.promotion.outcomes import ClassificationOutcomes, Floats, Outcomes, Weights

_SEED = 20240
RESAMPLES = {"segmentation": 1000, "detection": 200}


@dataclass(frozen=True)
class Comparison:
    """Candidate against champion, in per cent.

    Args:
        p_value: of a difference at least as large by chance, two-sided.
        low, high: bounds of the difference at the confidence asked for.
        method: the test, in words.
        images: that both were compared on.
        class_p_values: shape (classes,), one-sided, of each class's loss; 1 where the candidate is no worse.
    """

    metric: str
    candidate: float
    champion: float
    low: float
    high: float
    p_value: float
    method: str
    images: int
    class_p_values: Floats

    @property
    def difference(self) -> float:
        """Candidate minus champion."""
        return self.candidate - self.champion


def compare(candidate: Outcomes, champion: Outcomes, images: Weights, confidence: float) -> Comparison:
    """Compare two models on the images that `images` counts (0 or 1).

    Args:
        confidence: of the interval, such as 0.95.

    Raises:
        ValueError: the outcomes are of other images or tasks.
    """
    if type(candidate) is not type(champion) or not np.array_equal(candidate.samples, champion.samples):
        raise ValueError("two models are compared on the same images")
    if isinstance(candidate, ClassificationOutcomes) and isinstance(champion, ClassificationOutcomes):
        return _by_images(candidate, champion, images, confidence)
    return _by_bootstrap(candidate, champion, images, confidence)


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of `gained` images that only one model has right, and `lost` that only the other has."""
    from scipy.stats import binomtest

    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def _by_images(
    candidate: ClassificationOutcomes, champion: ClassificationOutcomes, images: Weights, confidence: float
) -> Comparison:
    taken = np.asarray(images) > 0
    gained = int((candidate.right & ~champion.right)[taken].sum())
    lost = int((~candidate.right & champion.right)[taken].sum())
    count = int(taken.sum())
    new, old = candidate.value(images), champion.value(images)
    # Wald's interval of a difference of paired shares, with half a pair more in each cell (Agresti, Min 2005).
    total, plus, minus = count + 2, gained + 0.5, lost + 0.5
    spread = max(plus + minus - (plus - minus) ** 2 / total, 0.0) ** 0.5 / total
    reach = 100.0 * NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    middle = 100.0 * (plus - minus) / total
    return Comparison(
        candidate.metric,
        new,
        old,
        middle - reach,
        middle + reach,
        mcnemar(gained, lost),
        f"McNemar's exact test: {gained} images gained, {lost} lost",
        count,
        np.array([_class_p(candidate, champion, taken, label) for label in range(candidate.num_classes)]),
    )


def _class_p(
    candidate: ClassificationOutcomes, champion: ClassificationOutcomes, taken: NDArray[np.bool_], label: int
) -> float:
    from scipy.stats import binomtest

    own = taken & (candidate.truth == label)
    gained = int((candidate.right & ~champion.right & own).sum())
    lost = int((~candidate.right & champion.right & own).sum())
    # As many tests as classes: of one of them, chance alone is to be found as rarely as of a single test.
    alone = (
        1.0 if lost <= gained else float(binomtest(lost, gained + lost, 0.5, alternative="greater").pvalue)
    )
    return min(1.0, alone * candidate.num_classes)


def _by_bootstrap(candidate: Outcomes, champion: Outcomes, images: Weights, confidence: float) -> Comparison:
    generator = np.random.default_rng(_SEED)
    taken = np.flatnonzero(np.asarray(images) > 0)
    times = RESAMPLES[candidate.kind]
    differences, no_loss = np.empty(times), np.zeros(candidate.num_classes)
    for number in range(times):
        drawn = np.bincount(generator.choice(taken, len(taken)), minlength=len(images))
        new, old = candidate.class_values(drawn), champion.class_values(drawn)
        differences[number] = np.nanmean(new) - np.nanmean(old)
        no_loss += ~(new < old)
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    low, high = np.quantile(differences, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Comparison(
        candidate.metric,
        candidate.value(images),
        champion.value(images),
        float(low),
        float(high),
        min(1.0, 2.0 * float(min(below, above) + 1) / (times + 1)),
        f"paired bootstrap of {times:,} samples of the images",
        len(taken),
        (no_loss + 1) / (times + 1),
    )
