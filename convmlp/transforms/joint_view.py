"""The part of an image that is seen, and its size: one geometry for its pixels, label map, boxes and masks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as runs

from convmlp.transforms.pixels import Box, Pixels, flip_in_place, resize_into

Boxes = NDArray[np.float64]
"""Shape (n, 4): left, top, right, bottom in pixels."""
IGNORED = 255
"""In label maps: pixels that count neither in the loss nor in the metrics."""
Segmentation = Any
"""As COCO has it: polygons, lists [x0, y0, x1, y1, ...], or run lengths, compressed or not."""


class JointView(NamedTuple):
    """A box of an image, resized to `size` and perhaps mirrored: drawn once, then applied to all that belongs to it.

    What was annotated at another size than the image is stored in is scaled.
    """

    stored: tuple[int, int]
    """Height and width of the whole image."""
    box: Box
    size: tuple[int, int]
    """Height and width at which the box is seen."""
    flip: bool

    def smallest(self) -> tuple[int, int]:
        """Height and width from which the whole image may be decoded smaller and its box still have `size`."""
        scale = max(self.size[0] / self.box.height, self.size[1] / self.box.width)
        return math.ceil(self.stored[0] * scale), math.ceil(self.stored[1] * scale)

    def pixels(self, pixels: Pixels, out: Pixels) -> None:
        """Fill `out`, of this size, from the box's pixels, which may have been decoded smaller than stored."""
        resize_into(out, pixels, "bilinear")
        if self.flip:
            flip_in_place(out)

    def label_map(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Numbers by pixel, of the whole image: those nearest to each pixel's centre."""
        rows, columns = self._sources(labels.shape)
        return labels[rows[:, None], columns]

    def boxes(self, boxes: Boxes, annotated: tuple[int, int]) -> Boxes:
        """Boxes in pixels of this view, cut at its edges; one that lies outside has no area."""
        scale, shift = self._affine(annotated)
        moved = boxes * np.tile(scale, 2) + np.tile(shift, 2)
        if self.flip:
            moved[:, [0, 2]] = self.size[1] - moved[:, [2, 0]]
        height, width = self.size
        return np.clip(moved, 0.0, [width, height, width, height])

    def mask(self, segmentation: Segmentation, annotated: tuple[int, int]) -> NDArray[np.uint8]:
        """An object's mask in this view, 0 and 1. Polygons are moved and drawn, run lengths are sampled.

        Args:
            segmentation: of the whole image.
            annotated: the image's height and width there.
        """
        height, width = self.size
        if isinstance(segmentation, list):
            moved = [self._polygon(polygon, annotated) for polygon in segmentation]
            return runs.decode(runs.merge(runs.frPyObjects(moved, height, width)))
        if isinstance(segmentation["counts"], list):
            segmentation = runs.frPyObjects(segmentation, *annotated)
        return self.label_map(runs.decode(segmentation))

    def _polygon(self, polygon: list[float], annotated: tuple[int, int]) -> list[float]:
        scale, shift = self._affine(annotated)
        points = np.asarray(polygon, np.float64).reshape(-1, 2) * scale + shift
        if self.flip:
            points[:, 0] = self.size[1] - points[:, 0]
        flat: list[float] = points.ravel().tolist()
        return flat

    def _affine(self, annotated: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(x, y) of the annotation times the first plus the second is (x, y) of the view, before mirroring."""
        zoom = np.array([self.size[1] / self.box.width, self.size[0] / self.box.height])
        resized = np.array([self.stored[1] / annotated[1], self.stored[0] / annotated[0]])
        return resized * zoom, -np.array([self.box.left, self.box.top]) * zoom

    def _sources(self, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column, of a map of the whole image, at the centre of each of the view's rows and columns."""
        found = []
        for side, first, length in ((0, self.box.top, self.box.height), (1, self.box.left, self.box.width)):
            centres = first + (np.arange(self.size[side]) + 0.5) * length / self.size[side]
            found.append(
                np.minimum(centres * shape[side] / self.stored[side], shape[side] - 1).astype(np.int64)
            )
        rows, columns = found
        return rows, columns[::-1] if self.flip else columns


def fitted(height: int, width: int, short_side: float, max_side: float) -> tuple[int, int]:
    """The size at which the shorter side is `short_side`, or the longer one `max_side` if it would be more."""
    scale = min(short_side / min(height, width), max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
