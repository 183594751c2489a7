"""The objects found by a model that are there, and those that it missed: COCO's rule at one threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IOU = 0.5
"""Intersection over union from which a box is the right place."""


@dataclass(frozen=True)
class Matches:
    """The verdict on each object."""

    right: NDArray[np.bool_]
    """Shape (found,): an object of this class is there, and no better one has it."""
    excused: NDArray[np.bool_]
    """Shape (found,): it lies in a crowd of its class, where it counts neither way."""
    missed: NDArray[np.bool_]
    """Shape (truth,): no found one has it; never a crowd."""


def match_objects(
    found: NDArray[np.floating],
    found_labels: NDArray[np.integer],
    truth: NDArray[np.floating],
    truth_labels: NDArray[np.integer],
    is_crowd: NDArray[np.bool_],
) -> Matches:
    """Give each found box, best first, the nearest free true box of its class with an overlap of `IOU`.

    Args:
        found: shape (n, 4), left, top, right, bottom; best first.
        truth: shape (m, 4).
        is_crowd: shape (m,).
    """
    overlaps = _overlaps(found, truth, is_crowd)
    overlaps[found_labels[:, None] != truth_labels[None, :]] = 0.0
    right, excused = np.zeros(len(found), np.bool_), np.zeros(len(found), np.bool_)
    free = ~is_crowd
    for place, row in enumerate(overlaps):
        candidates = np.where(free, row, 0.0)
        if len(candidates) and candidates.max() >= IOU:
            free[int(candidates.argmax())] = False
            right[place] = True
        else:
            excused[place] = bool((row[is_crowd] >= IOU).any())
    return Matches(right, excused, free)


def _overlaps(
    found: NDArray[np.floating], truth: NDArray[np.floating], is_crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Intersection over union, shape (n, m); with crowds, over the found box's own area."""
    from pycocotools import mask

    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    sized = [
        np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dtype=np.float64) for boxes in (found, truth)
    ]
    return np.asarray(mask.iou(*sized, is_crowd.astype(np.uint8)))
