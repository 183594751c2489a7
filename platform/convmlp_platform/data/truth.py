"""The known truth of a stored sample, as plain arrays, which pictures and comparisons need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.split import ShardedSplit
from convmlp_platform.pictures.predictions import Objects
from data_prep.annotations import Detection, parse_detection
from data_prep.errors import RejectedSample
from data_prep.masks import read_mask

Truth = int | Objects | NDArray[np.int16]
"""By the dataset's task: a label; objects; labels by pixel, shape (height, width), -1 where nothing is labelled."""


def truth_of(split: ShardedSplit, sample: int) -> Truth:
    """Returns the annotated truth of a sample.

    Raises:
        DataError: it is damaged; the message names shard and bytes.
    """
    manifest = split.manifest
    if manifest.task == "classification":
        return split.label(sample)
    annotation = split.annotation(sample)
    try:
        if manifest.task == "detection":
            return objects_of(parse_detection(annotation, manifest.class_ids))
        return areas_of(annotation)
    except RejectedSample as error:
        raise split.damaged(sample, f"its annotation can't be used ({error})") from None


def objects_of(found: Detection) -> Objects:
    """All objects, crowds and unusable ones too, with their masks."""
    boxes = found.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    masks = [found.mask(place) for place in range(len(found.labels))]
    return Objects(boxes, found.labels, masks=masks, is_crowd=found.is_crowd)


def areas_of(mask: bytes) -> NDArray[np.int16]:
    """Labels by pixel: 0..n-1, -1 is ignored."""
    return read_mask(mask).astype(np.int16) - 1
