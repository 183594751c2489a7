"""Images and their objects for detection and instance segmentation: resized whole, mirrored, sizes kept apart.

Instance masks as bits: eight pixels a byte, on their way from readers to the device.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmlp.transforms.joint_view import Boxes, JointView, Segmentation, fitted
from convmlp.transforms.pixels import Box


def pack_masks(masks: NDArray[Any]) -> NDArray[np.uint8]:
    """[n, H, W], 0 and 1 → [n, H, ceil(W / 8)] uint8, the left pixel in the highest bit."""
    return np.packbits(masks, axis=-1)


def unpack_masks(packed: Tensor, width: int) -> Tensor:
    """The masks [n, H, width] uint8, 0 and 1, on whatever device the bits are."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    bits = (packed[..., None] >> shifts) & 1
    return bits.flatten(-2)[..., :width]


_MIN_SIDE = 1.0
"""Objects whose box is narrower or lower than this in the view, in pixels, are left out."""
SMALLEST_SIDE = 32
"""Pixels: the stride of the backbones' last map, below which there is nothing to see."""


class Objects(NamedTuple):
    """The annotated objects of an image: boxes [n, 4], labels [n], and, where they are wanted, segmentations."""

    boxes: Boxes
    labels: NDArray[np.int64]
    segmentations: list[Segmentation]
    annotated: tuple[int, int]
    """Height and width of the image in the annotation."""


class DetectionTransform:
    """Without draws: the shorter side becomes `short_sides`' last, the longer one at most `max_side`.

    Args:
        short_sides: pixels; 800 in the papers.
        max_side: pixels; 1333 in the papers.
        masks: whether objects' masks are wanted.

    Raises:
        ValueError: a size is less than 32 pixels, or the sides contradict each other.
    """

    def __init__(
        self, short_sides: Sequence[int] = (800,), max_side: int = 1333, *, masks: bool = False
    ) -> None:
        if not short_sides or min(short_sides) < SMALLEST_SIDE or max(short_sides) > max_side:
            raise ValueError(
                f"short_sides {list(short_sides)} must be {SMALLEST_SIDE} or more, and at most max_side (={max_side})"
            )
        self.short_sides, self.max_side = tuple(short_sides), max_side
        self.masks = masks

    @property
    def most_pixels(self) -> int:
        """Of any image this makes: what room it needs."""
        return max(self.short_sides) * self.max_side

    def seed(self, key: int) -> None:
        """Make what follows, for one image, a function of `key` (64 bits)."""
        random.seed(key)

    def view(self, height: int, width: int) -> JointView:
        """How an image of this size is seen."""
        size = fitted(height, width, self.short_sides[-1], self.max_side)
        return JointView((height, width), Box(0, 0, height, width), size, False)

    def target(self, objects: Objects, view: JointView) -> dict[str, NDArray[np.generic]]:
        """`boxes` [n, 4] float32, `labels` [n] int64 and, if wanted, `masks` as bits, of the objects that remain."""
        boxes = view.boxes(objects.boxes, objects.annotated)
        remain = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE).all(axis=1))
        target: dict[str, NDArray[np.generic]] = {
            "boxes": boxes[remain].astype(np.float32),
            "labels": objects.labels[remain],
        }
        if self.masks:
            masks = [view.mask(objects.segmentations[at], objects.annotated) for at in remain.tolist()]
            target["masks"] = pack_masks(np.stack(masks) if masks else np.zeros((0, *view.size), np.uint8))
        return target


class DetectionTrainTransform(DetectionTransform):
    """The papers' augmentation: resize, and mirror with probability `hflip`; a random one of several `short_sides`.

    Args:
        short_sides, max_side, masks: as in `DetectionTransform`.
        hflip: probability of mirroring left and right.
        crop: range of the share of height and width that is kept, at a random place; by default all of it.

    Raises:
        ValueError: as `DetectionTransform`, or a share is not in (0, 1].
    """

    def __init__(
        self,
        short_sides: Sequence[int] = (800,),
        max_side: int = 1333,
        *,
        masks: bool = False,
        hflip: float = 0.5,
        crop: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(short_sides, max_side, masks=masks)
        if not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"crop must be a range within (0, 1], not {crop}")
        self.hflip, self.crop = hflip, crop

    def view(self, height: int, width: int) -> JointView:
        """Draw how an image of this size is seen."""
        box = Box(0, 0, height, width)
        if self.crop[0] < 1:
            high, wide = (max(1, round(side * random.uniform(*self.crop))) for side in (height, width))
            box = Box(random.randint(0, height - high), random.randint(0, width - wide), high, wide)
        short_side = random.choice(self.short_sides) if len(self.short_sides) > 1 else self.short_sides[0]
        size = fitted(box.height, box.width, short_side, self.max_side)
        return JointView((height, width), box, size, self.hflip > 0 and random.random() < self.hflip)
