"""From a stored annotation to arrays, under the names that torchvision's detectors and segmenters use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.annotations.annotations import Detection, parse_detection
from data_prep.images.masks import read_mask

ObjectArrays = dict[str, Any]
LabelArray = NDArray[np.uint8]
SampleTarget = int | ObjectArrays | LabelArray
"""By the dataset's task: a label; `object_arrays`; `label_array`."""


def object_arrays(annotation: bytes, class_ids: Sequence[int] | None, *, masks: bool = False) -> ObjectArrays:
    """The n objects of an image that have a box with an area in it; boxes end at the image's edge.

    Args:
        annotation: as stored.
        class_ids: the publisher's category ids by label (the manifest's).
        masks: also decode the masks.

    Returns `image_id` (int), `boxes` (float32 [n, 4]: left, top, right, bottom in pixels), `labels` (int64 [n], places
    in the dataset's classes), `area` (float32 [n], published, in pixels), `iscrowd` (int64 [n], 1: the box holds many
    objects), and with `masks` `masks` (uint8 [n, H, W], 0 and 1).

    Raises:
        RejectedSample: the annotation is damaged.
    """
    found = parse_detection(annotation, class_ids)
    kept = np.flatnonzero(found.usable)
    boxes = found.boxes[kept]
    boxes[:, 2:] += boxes[:, :2]
    boxes = boxes.clip(0, [found.width, found.height, found.width, found.height])
    target: ObjectArrays = {
        "image_id": found.image_id,
        "boxes": boxes.astype(np.float32),
        "labels": found.labels[kept],
        "area": found.areas[kept].astype(np.float32),
        "iscrowd": found.is_crowd[kept].astype(np.int64),
    }
    if masks:
        target["masks"] = _masks(found, kept.tolist())
    return target


def _masks(found: Detection, kept: list[int]) -> NDArray[np.uint8]:
    masks = np.zeros((len(kept), found.height, found.width), np.uint8)
    for place, position in enumerate(kept):
        if (mask := found.mask(position)) is not None:
            masks[place] = mask
    return masks


def label_array(annotation: bytes) -> LabelArray:
    """Shape (height, width): places in the dataset's classes, 255 where nothing is labelled.

    Raises:
        RejectedSample: the annotation is no mask.
    """
    return read_mask(annotation) - np.uint8(1)  # 0, which is stored where nothing is labelled, wraps around


def target_of(
    task: str, label: int, annotation: bytes | None, class_ids: Sequence[int] | None, *, masks: bool = False
) -> SampleTarget:
    """The target of a sample by its dataset's task; `annotation` is None in classification.

    Raises:
        RejectedSample: the annotation is damaged.
    """
    if annotation is None:
        return label
    if task == "detection":
        return object_arrays(annotation, class_ids, masks=masks)
    return label_array(annotation)
