"""Some of the images with what the model says of them, kept while all go by."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convmlp_platform.data.dataset.split import ShardedSplit
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.pictures.predictions import Prediction
from convmlp_platform.training.outputs.sample_pictures import beside_truth, plain

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
