"""Reading for detection and instance segmentation: images of their own sizes, each with its objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convmlp.transforms.detection import DetectionTransform, Objects
from convmlp_platform.data.dataset.split import ReadPayload
from convmlp_platform.data.reading.batch_memory import Room
from convmlp_platform.data.reading.task_reading import RowsDraft, SampleDraft, TaskReading
from data_prep.annotations.annotations import Detection, parse_detection


@dataclass(frozen=True)
class DetectionReading(TaskReading):
    """Of each image: `boxes` [n, 4] float32 left, top, right, bottom in its pixels, `labels` [n] int64, `masks` as bits
    (convmlp.transforms.detection) where the transform wants them, `image_id`, and `size`, height and width as
    published.

    Crowds are left out, and objects that preparation has listed as unusable (`odd_objects.jsonl`): without area,
    outside the image. Boxes are cut at the image's edge. Evaluation adds `objects`, everything as published.

    Args:
        class_ids: category ids by label.
    """

    transform: DetectionTransform
    class_ids: Sequence[int] | None

    def room(self, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return (size, 3 * self.transform.most_pixels), np.dtype(np.uint8)

    def draft(self, size: int, room: Room | None) -> SampleDraft:
        return _ObjectsDraft(size, self, room)


class _ObjectsDraft(RowsDraft):
    def __init__(self, size: int, reading: DetectionReading, room: Room | None) -> None:
        super().__init__(size, reading.transform.most_pixels, room)
        self._transform, self._class_ids = reading.transform, reading.class_ids

    def put(self, place: int, payload: ReadPayload, key: int | None) -> None:
        transform = self._transform
        found = parse_detection(payload.annotation(), self._class_ids)
        if key is not None:
            transform.seed(key)
        view = transform.view(payload.height, payload.width)
        pixels = payload.pixels(None if key is None else view.smallest())
        view.pixels(pixels, self.take(place, view.size))
        target: dict[str, Any] = transform.target(_usable(found, transform.masks), view)
        target |= {"image_id": found.image_id, "size": (found.height, found.width)}
        if key is None:
            target["objects"] = found.drawable_objects
        self.targets[place] = target


def _usable(found: Detection, masks: bool) -> Objects:
    """Returns the objects that training can use; with `masks`, only objects that have a mask."""
    usable = found.usable_masks if masks else found.usable
    segmentations = [item.get("segmentation") for item in found.objects]
    kept = np.flatnonzero(usable & ~found.is_crowd)
    boxes = found.boxes[kept]
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        boxes, found.labels[kept], [segmentations[at] for at in kept.tolist()], (found.height, found.width)
    )
