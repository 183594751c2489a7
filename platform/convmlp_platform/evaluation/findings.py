"""The findings of an evaluation beside its task's metrics: the scores of each class, the confusion of classes, and some
of the images with what the model says of them.

They are collected batch by batch.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmlp.tasks.coco_metrics import CocoMetrics
from convmlp.transforms.joint_view import IGNORED
from convmlp_platform.data.dataset.split import ShardedSplit
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.evaluation.result import ClassScore
from convmlp_platform.pictures.predictions import Prediction
from convmlp_platform.training.outputs.sample_pictures import beside_truth, plain

Counts = NDArray[np.int64]
"""Shape (classes, classes): row the true class, column the one that was said."""


@dataclass(frozen=True)
class EvaluationFindings:
    """After all images: `metrics` in per cent that the task's own lack; `confusion` where there is such a thing."""

    per_class: list[ClassScore] = field(default_factory=list)
    confusion: Counts | None = None
    unit: str = "images"


class Watch(ABC):
    """Looks at each batch of an evaluation."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)

    @abstractmethod
    def update(self, batch: MicroBatch, outputs: Any, targets: Any) -> None:
        """Take in a batch: the task's outputs and targets."""

    @abstractmethod
    def findings(self) -> EvaluationFindings:
        """Of all batches, after the metrics were computed."""


class ClassificationWatch(Watch):
    """Keeps every image's true and first class: 16 bytes an image."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, batch: MicroBatch, outputs: Tensor, targets: Tensor) -> None:
        self._batches.append((batch.sample_ids.clone(), targets.cpu(), outputs.argmax(1).cpu()))

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Sample ids, true and predicted classes, each of shape (images,)."""
        samples, truth, said = (torch.cat(column).numpy() for column in zip(*self._batches, strict=True))
        return samples, truth, said

    def findings(self) -> EvaluationFindings:
        _, truth, said = self.arrays()
        counts = count_pairs(truth, said, len(self.classes))
        found = [
            ClassScore(name=name, count=n, scores={"accuracy": score})
            for name, n, score in _recalls(self, counts)
        ]
        return EvaluationFindings(found, counts, "images")


class SegmentationWatch(Watch):
    """Counts pixels by true and predicted class."""

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self._counts = np.zeros((len(classes), len(classes)), np.int64)

    def update(self, batch: MicroBatch, outputs: list[Tensor], targets: Sequence[Tensor]) -> None:
        for said, truth in zip(outputs, targets, strict=True):
            labelled = truth != IGNORED
            self._counts += count_pairs(
                truth[labelled].cpu().numpy(), said[labelled].cpu().numpy(), len(self.classes)
            )

    def findings(self) -> EvaluationFindings:
        counts = self._counts
        both = np.diag(counts)
        either = counts.sum(0) + counts.sum(1) - both
        found = []
        for place, (name, number, recall) in enumerate(_recalls(self, counts)):
            iou = 100.0 * float(both[place] / either[place]) if either[place] else None
            found.append(ClassScore(name=name, count=number, scores={"iou": iou, "accuracy": recall}))
        return EvaluationFindings(found, counts, "pixels")


class DetectionWatch(Watch):
    """Counts objects; AP of the classes is what pycocotools found."""

    def __init__(self, classes: Sequence[str], metrics: CocoMetrics) -> None:
        super().__init__(classes)
        self._metrics = metrics
        self._objects: dict[int, int] = dict.fromkeys(metrics.class_ids, 0)

    def update(self, batch: MicroBatch, outputs: Any, targets: list[dict[str, Any]]) -> None:
        for target in targets:
            for item in target["objects"]:
                self._objects[item["category_id"]] += not item.get("iscrowd", 0)

    def findings(self) -> EvaluationFindings:
        found = []
        for number, name in zip(self._metrics.class_ids, self.classes, strict=True):
            aps = {f"{kind}_ap": by_class.get(number) for kind, by_class in self._metrics.class_ap.items()}
            scores = {kind: None if ap is None else 100.0 * ap for kind, ap in aps.items()}
            found.append(ClassScore(name=name, count=self._objects[number], scores=scores))
        return EvaluationFindings(found, None, "objects")


def count_pairs(truth: NDArray[np.integer], said: NDArray[np.integer], num_classes: int) -> Counts:
    """How often each class was said of each true class."""
    pairs = truth.astype(np.int64) * num_classes + said.astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def _recalls(watch: Watch, counts: Counts) -> list[tuple[str, int, float | None]]:
    """Name, count and share that was recognised, in per cent, of each class."""
    right, total = np.diag(counts).tolist(), counts.sum(1).tolist()
    return [
        (name, n, 100.0 * hits / n if n else None)
        for name, hits, n in zip(watch.classes, right, total, strict=True)
    ]


SHOWN = {"classification": 40, "detection": 8, "segmentation": 8}
"""Images on a sheet, by the dataset's task."""


class Samples:
    """Images at even distances over the split, and of classifiers the surest mistakes.

    Args:
        split: where the images are read once more, as they are stored.
    """

    def __init__(self, split: ShardedSplit) -> None:
        self._split, self._task = split, split.manifest.task
        self._count = min(SHOWN[self._task], len(split))
        self._wanted = set(np.linspace(0, len(split) - 1, self._count).round().astype(int).tolist())
        self.spread: list[Prediction] = []
        self._mistakes: list[tuple[float, int, Tensor]] = []

    def update(self, batch: MicroBatch, outputs: Any, targets: Any) -> None:
        """Take in a batch: the task's outputs and targets."""
        ids = batch.sample_ids.tolist()
        for place, sample in enumerate(ids):
            if sample in self._wanted:
                self.spread.append(beside_truth(self._split, sample, plain(outputs[place])))
        if self._task == "classification":
            self._keep_mistakes(ids, outputs.cpu(), targets.cpu())

    def mistakes(self) -> list[Prediction]:
        """The wrong predictions of the highest probability, surest first."""
        ordered = sorted(self._mistakes, key=lambda one: (-one[0], one[1]))
        return [beside_truth(self._split, sample, plain(logits)) for _, sample, logits in ordered]

    def _keep_mistakes(self, ids: list[int], logits: Tensor, truth: Tensor) -> None:
        sure, said = logits.float().softmax(1).max(1)
        for place in (said != truth).nonzero()[:, 0].tolist():
            # Equal probabilities are told apart by the sample: tensors have no order.
            entry = (float(sure[place]), ids[place], logits[place].clone())
            if len(self._mistakes) < SHOWN["classification"]:
                heapq.heappush(self._mistakes, entry)
            else:
                heapq.heappushpop(self._mistakes, entry)


class FirstImages:
    """Copies of the first images, as the model gets them: [3, H, W] each."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.images: list[Tensor] = []

    def update(self, batch: MicroBatch) -> None:
        """Take in a batch."""
        for image in list(batch.images)[: self._count - len(self.images)]:
            self.images.append(image.clone(memory_format=torch.contiguous_format))
