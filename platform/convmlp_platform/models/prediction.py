"""The prediction of a model for an image: class names with probabilities, objects, or a class for each pixel."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MIN_SCORE = 0.05
"""Objects that detectors are less sure of are not even found, as published."""


@dataclass(frozen=True)
class Labels:
    """Of a classifier: `probabilities` float32 [num_classes] on the CPU, in the order of `classes`."""

    classes: tuple[str, ...]
    probabilities: Tensor

    def top(self, k: int) -> list[tuple[str, float]]:
        """The `k` (or all, if fewer) most probable classes, best first."""
        best = self.probabilities.topk(min(k, len(self.classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.classes[number], value) for number, value in pairs]


@dataclass(frozen=True)
class Detections:
    """Of a detector: k objects, best first, on the CPU, in the pixels of the image as it was given.

    `size`: the image's height and width. `boxes`: float32 [k, 4] left, top, right, bottom. `scores`: float32 [k].
    `labels`: int64 [k], places in `classes` and `class_ids`. `masks`: bool [k, height, width], of Mask R-CNN.
    """

    classes: tuple[str, ...]
    class_ids: tuple[int, ...]
    size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The objects' classes."""
        return [self.classes[label] for label in self.labels.tolist()]

    def above(self, min_score: float) -> Detections:
        """The objects of at least this score."""
        kept = self.scores >= min_score
        masks = None if self.masks is None else self.masks[kept]
        return replace(
            self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], masks=masks
        )

    def as_coco(self) -> list[dict[str, Any]]:
        """JSON values with the keys of COCO's results (`category_id`, `score`, `bbox` as left, top, width, height, and
        with masks `segmentation` as compressed run lengths), and the class's `name`."""
        sized = torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], dim=1)
        labels = self.labels.tolist()
        found: list[dict[str, Any]] = [
            {"name": self.classes[label], "category_id": self.class_ids[label], "score": score, "bbox": box}
            for label, score, box in zip(labels, self.scores.tolist(), sized.tolist(), strict=True)
        ]
        if self.masks is not None:
            for one, runs in zip(found, run_lengths(self.masks), strict=True):
                one["segmentation"] = runs
        return found


@dataclass(frozen=True)
class LabelMap:
    """Of a segmenter: `labels` uint8 [height, width] on the CPU, of the image as it was given: places in `classes`."""

    classes: tuple[str, ...]
    labels: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.labels.shape[0], self.labels.shape[1]

    def shares(self) -> dict[str, float]:
        """Class → share of the pixels, in (0, 1], the largest first; only classes that occur."""
        return {self.classes[number]: share for number, share in self.class_shares()}

    def class_shares(self) -> list[tuple[int, float]]:
        """The same with the classes' places in `classes`."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return [(n, float(counts[n] / self.labels.size)) for n in order.tolist() if counts[n]]

    def as_png(self) -> bytes:
        """A grey PNG file whose values are places in `classes`, from 0."""
        buffer = io.BytesIO()
        Image.fromarray(self.labels).save(buffer, "PNG")
        return buffer.getvalue()


Prediction = Labels | Detections | LabelMap


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run lengths of masks [k, height, width]: `size` [height, width] and `counts`, as text."""
    from pycocotools import mask as runs

    encoded = runs.encode(np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).numpy()))
    return [{"size": list(one["size"]), "counts": one["counts"].decode("ascii")} for one in encoded]
