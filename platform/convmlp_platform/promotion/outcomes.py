"""What a model said of each image of a split: enough to compute the task's metric of any sample of the images again."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Weights = NDArray[np.integer[Any]] | NDArray[np.float64]
"""Shape (images,): how often each image counts; a bootstrap's sample, or 0 and 1."""

_RECALLS = np.linspace(0.0, 1.0, 101)
_BINS = 15


@dataclass(frozen=True)
class Outcomes(ABC):
    """By image, in the order of `samples`.

    Args:
        samples: shape (images,), numbers in the split.
        num_classes: of the dataset.
        mean_loss: of all images.
    """

    samples: Ints
    num_classes: int
    mean_loss: float
    kind: ClassVar[str]
    metric: ClassVar[str]

    def value(self, weights: Weights) -> float:
        """The task's metric in per cent: of dense tasks the mean over classes."""
        return float(np.nanmean(self.class_values(weights)))

    @abstractmethod
    def class_values(self, weights: Weights) -> Floats:
        """Shape (classes,): accuracy, AP or IoU in per cent; NaN of a class that no image has."""

    @abstractmethod
    def class_counts(self, weights: Weights) -> Floats:
        """Shape (classes,): images, objects or pixels of each class."""

    @property
    def finite(self) -> bool:
        """Whether all that the model said are numbers."""
        return math.isfinite(self.mean_loss)

    def all_images(self) -> Weights:
        """Weights of each image once."""
        return np.ones(len(self.samples), np.int64)


@dataclass(frozen=True)
class ClassificationOutcomes(Outcomes):
    """`truth`, `said`: shape (images,), classes. `confidence`: probability of `said`; `loss`: of the truth, in nats."""

    truth: Ints
    said: Ints
    confidence: Floats
    loss: Floats
    kind = "classification"
    metric = "top1"

    @property
    def right(self) -> NDArray[np.bool_]:
        """Shape (images,): whether the first class is the true one."""
        return self.truth == self.said

    def value(self, weights: Weights) -> float:
        return 100.0 * float((self.right * weights).sum() / weights.sum())

    def class_counts(self, weights: Weights) -> Floats:
        return np.bincount(self.truth, weights, self.num_classes).astype(np.float64)

    def class_values(self, weights: Weights) -> Floats:
        hits = np.bincount(self.truth, self.right * weights, self.num_classes)
        return _per_cent(hits, self.class_counts(weights))

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mean_loss) and bool(
            np.isfinite(self.loss).all() and np.isfinite(self.confidence).all()
        )

    def calibration_error(self, weights: Weights) -> float:
        """Expected calibration error in per cent: how far confidence is from accuracy, in 15 bins of confidence."""
        bins = np.minimum((self.confidence * _BINS).astype(np.int64), _BINS - 1)
        sure = np.bincount(bins, self.confidence * weights, _BINS)
        right = np.bincount(bins, self.right * weights, _BINS)
        return 100.0 * float(np.abs(sure - right).sum() / weights.sum())


@dataclass(frozen=True)
class SegmentationOutcomes(Outcomes):
    """Pixels by image and class, shape (images, classes): `both` said and true, `true`, `said`; no ignored ones."""

    both: Ints
    true: Ints
    said: Ints
    kind = "segmentation"
    metric = "miou"

    def class_counts(self, weights: Weights) -> Floats:
        return np.asarray(weights @ self.true, np.float64)

    def class_values(self, weights: Weights) -> Floats:
        both = weights @ self.both
        return _per_cent(both, weights @ self.true + weights @ self.said - both)


@dataclass(frozen=True)
class DetectionOutcomes(Outcomes):
    """Objects found and true, as pycocotools has matched them.

    Args:
        image, label, score: shape (found,): place of the image, class, score.
        hit, ignored: shape (found, 10): by IoU threshold 0.5, 0.55, ..., 0.95.
        objects: shape (images, classes): true objects that count.
        masks: whether masks were matched, or boxes.
    """

    image: Ints
    label: Ints
    score: Floats
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    objects: Ints
    masks: bool
    kind = "detection"
    metric = "ap"

    def class_counts(self, weights: Weights) -> Floats:
        return np.asarray(weights @ self.objects, np.float64)

    def class_values(self, weights: Weights) -> Floats:
        counts = self.class_counts(weights)
        found = np.full(self.num_classes, np.nan)
        for label in np.flatnonzero(counts):
            chosen = np.flatnonzero(self.label == label)
            chosen = chosen[np.argsort(-self.score[chosen], kind="stable")]
            times = np.asarray(weights, np.float64)[self.image[chosen], None] * ~self.ignored[chosen]
            hits = np.cumsum(self.hit[chosen] * times, 0)
            told = np.cumsum(times, 0)
            found[label] = 100.0 * np.mean(
                [_average_precision(hits[:, place], told[:, place], counts[label]) for place in range(10)]
            )
        return found

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mean_loss) and bool(np.isfinite(self.score).all())


def _average_precision(hits: Floats, told: Floats, count: float) -> float:
    """Over 101 recalls, as COCO's."""
    if not len(hits):
        return 0.0
    precision = np.divide(hits, told, out=np.zeros_like(hits), where=told > 0)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / count, _RECALLS, side="left")
    return float(np.where(places < len(hits), precision[np.minimum(places, len(hits) - 1)], 0.0).mean())


def _per_cent(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    whole = np.asarray(whole, np.float64)
    return np.divide(100.0 * part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


_KINDS: Mapping[str, type[Outcomes]] = {
    one.kind: one for one in (ClassificationOutcomes, SegmentationOutcomes, DetectionOutcomes)
}


def to_bytes(outcomes: Outcomes) -> bytes:
    """As it goes from the measuring process to the one that asked; nothing in it is code."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {one.name: np.asarray(getattr(outcomes, one.name)) for one in fields(outcomes)}
    np.savez_compressed(buffer, kind=np.asarray(outcomes.kind), **arrays)
    return buffer.getvalue()


def from_bytes(content: bytes) -> Outcomes:
    """Reads what `to_bytes` gave.

    Raises:
        DataError: it is something else.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            kind = _KINDS[str(found["kind"])]
            values = {one.name: found[one.name] for one in fields(kind)}
    except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"the outcomes of a measurement can't be read: {error}") from None
    return kind(**{name: value.item() if value.ndim == 0 else value for name, value in values.items()})
