"""Reading for semantic segmentation: crops of one size in training, whole images in evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmlp.transforms.segmentation import SegmentationEvalTransform, SegmentationTrainTransform
from convmlp_platform.data.dataset.split import ReadPayload
from convmlp_platform.data.reading.batch_memory import Room
from convmlp_platform.data.reading.classification import FixedDraft
from convmlp_platform.data.reading.task_reading import RowsDraft, SampleDraft, TaskReading
from data_prep.errors import RejectedSample
from data_prep.images.masks import check_values, read_mask


@dataclass(frozen=True)
class SegmentationReading(TaskReading):
    """Label maps uint8, 255 where nothing is labelled: [B, size, size] of crops; [H, W] each, as stored, of whole
    images."""

    transform: SegmentationTrainTransform | SegmentationEvalTransform
    num_classes: int

    def room(self, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if isinstance(self.transform, SegmentationEvalTransform):
            return (size, 3 * self.transform.most_pixels), np.dtype(np.uint8)
        side = self.transform.size
        return (size, side, side, 3), np.dtype(np.uint8)

    def draft(self, size: int, room: Room | None) -> SampleDraft:
        if isinstance(self.transform, SegmentationEvalTransform):
            return _WholeDraft(size, self.transform, self.num_classes, room)
        return _CropsDraft(size, self.transform, self.num_classes, room)


class _CropsDraft(FixedDraft):
    def __init__(
        self, size: int, transform: SegmentationTrainTransform, num_classes: int, room: Room | None
    ) -> None:
        super().__init__(size, transform.size, np.dtype(np.uint8), room)
        self.targets = np.empty((size, transform.size, transform.size), np.uint8)
        self._transform, self._num_classes = transform, num_classes

    def put(self, place: int, payload: ReadPayload, key: int | None) -> None:
        assert key is not None
        labels = _label_map(payload, self._num_classes)
        self._transform.seed(key)
        view = self._transform.view(labels)
        pixels = payload.pixels(view.smallest())
        self._transform.render(pixels, labels, view, self._pixels[place], self.targets[place])


class _WholeDraft(RowsDraft):
    def __init__(
        self, size: int, transform: SegmentationEvalTransform, num_classes: int, room: Room | None
    ) -> None:
        super().__init__(size, transform.most_pixels, room)
        self._transform, self._num_classes = transform, num_classes

    def put(self, place: int, payload: ReadPayload, key: int | None) -> None:
        self.targets[place] = _label_map(payload, self._num_classes)
        view = self._transform.view(payload.height, payload.width)
        view.pixels(payload.pixels(), self.take(place, view.size))


def _label_map(payload: ReadPayload, num_classes: int) -> NDArray[np.uint8]:
    """Shape (height, width), of the image's size: mask value 0 becomes 255, value k label k - 1.

    Raises:
        RejectedSample: the mask is of another size, or has a value that is no class.
    """
    values = read_mask(payload.annotation())
    if values.shape != (payload.height, payload.width):
        raise RejectedSample(
            f"the mask has {values.shape[1]} x {values.shape[0]} pixels, the image {payload.width} x {payload.height}"
        )
    check_values(values, num_classes)
    return values - np.uint8(1)  # 0 wraps around to 255
