"""Images and their label maps for semantic segmentation: random scale and crop in training, whole images after.

Photometric distortion: the colour augmentation of semantic segmentation's published recipes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmlp.transforms.joint_view import IGNORED, JointView, fitted
from convmlp.transforms.object_transforms import SMALLEST_SIDE
from convmlp.transforms.pixels import Box, Pixels

_BRIGHTNESS, _HUE = 32, 18 / 180
_CONTRAST = _SATURATION = (0.5, 1.5)


def distort_colors(pixels: Pixels) -> None:
    """Brightness +-32, contrast and saturation x 0.5..1.5, hue +-36 degrees, each with probability 1/2, in place.

    As mmsegmentation's PhotoMetricDistortion: contrast comes before or after saturation and hue, as drawn. Draws are
    from Python's `random`.
    """
    shift = random.uniform(-_BRIGHTNESS, _BRIGHTNESS) if random.random() < 0.5 else 0.0
    contrast_first = random.random() < 0.5
    gain = random.uniform(*_CONTRAST) if random.random() < 0.5 else 1.0
    saturation = random.uniform(*_SATURATION) if random.random() < 0.5 else 1.0
    turn = random.uniform(-_HUE, _HUE) if random.random() < 0.5 else 0.0

    _scale(pixels, gain if contrast_first else 1.0, shift)
    if saturation != 1.0 or turn != 0.0:
        hue, color, value = Image.fromarray(pixels).convert("HSV").split()
        hue = hue.point([round(level + turn * 256) % 256 for level in range(256)])
        color = color.point([min(255, round(level * saturation)) for level in range(256)])
        pixels[:] = np.asarray(Image.merge("HSV", (hue, color, value)).convert("RGB"))
    _scale(pixels, 1.0 if contrast_first else gain, 0.0)


def _scale(pixels: Pixels, gain: float, shift: float) -> None:
    """clip((pixel + shift) x gain), by a table."""
    if gain != 1.0 or shift != 0.0:
        table = np.clip(np.rint((np.arange(256) + shift) * gain), 0, 255).astype(np.uint8)
        np.take(table, pixels, out=pixels)


_TRIES = 10

LabelMap = NDArray[np.uint8]
"""Classes by pixel, shape (height, width); 255 is ignored."""


class SegmentationTrainTransform:
    """A crop of the randomly scaled image: the recipe of ADE20K's Semantic FPN.

    The image is resized as `SegmentationEvalTransform` would, times a random factor, and cut to a square; where it is
    smaller, it lies at the top left of the mean colour, and the rest is ignored. Only the crop is ever resized.

    Args:
        size: of the crop, in pixels.
        mean: per channel, of pixels in [0, 1].
        short_side, max_side: as in `SegmentationEvalTransform`, before the random factor.
        scale: range of the factor.
        max_share: a crop of which one class fills more than this is drawn again, ten times at most.
        hflip: probability of mirroring left and right.
        photometric: whether colours are distorted (`convmlp.transforms.label_map_transforms`).

    Raises:
        ValueError: a size is less than 32 pixels, or the scale is no range.
    """

    def __init__(
        self,
        size: int = 512,
        *,
        mean: Sequence[float],
        short_side: int = 512,
        max_side: int = 2048,
        scale: tuple[float, float] = (0.5, 2.0),
        max_share: float = 0.75,
        hflip: float = 0.5,
        photometric: bool = True,
    ) -> None:
        _check_sides(size=size, short_side=short_side, max_side=max_side)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range of positive factors, not {scale}")
        self.size, self.short_side, self.max_side = size, short_side, max_side
        self.scale, self.max_share, self.hflip, self.photometric = scale, max_share, hflip, photometric
        self._fill = np.array([round(255 * value) for value in mean], np.uint8)

    def seed(self, key: int) -> None:
        """Make what follows, for one image, a function of `key` (64 bits)."""
        random.seed(key)

    def view(self, labels: LabelMap) -> JointView:
        """Draw the crop of an image with this label map."""
        stored = (labels.shape[0], labels.shape[1])
        factor = random.uniform(*self.scale)
        resized = fitted(*stored, self.short_side * factor, self.max_side * factor)
        seen = min(self.size, resized[0]), min(self.size, resized[1])
        lengths = [max(1, round(seen[side] * stored[side] / resized[side])) for side in (0, 1)]
        for _ in range(_TRIES):
            top, left = (random.randint(0, stored[side] - lengths[side]) for side in (0, 1))
            box = Box(top, left, *lengths)
            if self.max_share >= 1 or _largest_share(labels, box) <= self.max_share:
                break
        return JointView(stored, box, seen, self.hflip > 0 and random.random() < self.hflip)

    def render(self, pixels: Pixels, labels: LabelMap, view: JointView, out: Pixels, seen: LabelMap) -> None:
        """Fill `out` (size, size, 3) and `seen` (size, size) from the pixels of the view's box, which may have been
        decoded smaller, and the label map of the whole image."""
        height, width = view.size
        whole = (height, width) == (self.size, self.size)
        crop = out if whole else np.empty((height, width, 3), np.uint8)
        view.pixels(pixels, crop)
        if self.photometric:
            distort_colors(crop)
        if not whole:
            out[:], seen[:] = self._fill, IGNORED
            out[:height, :width] = crop
        seen[:height, :width] = view.label_map(labels)


class SegmentationEvalTransform:
    """The whole image: the shorter side becomes `short_side`, the longer one at most `max_side` pixels.

    Label maps stay as they are stored: predictions are resized to them.

    Raises:
        ValueError: a size is less than 32 pixels.
    """

    def __init__(self, short_side: int = 512, max_side: int = 2048) -> None:
        _check_sides(short_side=short_side, max_side=max_side)
        self.short_side, self.max_side = short_side, max_side

    @property
    def most_pixels(self) -> int:
        """Of any image this makes: what room it needs."""
        return self.short_side * self.max_side

    def view(self, height: int, width: int) -> JointView:
        """How an image of this size is seen."""
        size = fitted(height, width, self.short_side, self.max_side)
        return JointView((height, width), Box(0, 0, height, width), size, False)


def _largest_share(labels: LabelMap, box: Box) -> float:
    """Of the labelled pixels of the box, those of the most frequent class; 1 where none is labelled."""
    cut = labels[box.top : box.top + box.height, box.left : box.left + box.width]
    counts = np.bincount(cut.ravel(), minlength=IGNORED + 1)[:IGNORED]
    return float(counts.max() / total) if (total := counts.sum()) else 1.0


def _check_sides(**sides: int) -> None:
    for name, value in sides.items():
        if value < SMALLEST_SIDE:
            raise ValueError(f"{name} must be at least {SMALLEST_SIDE} pixels, not {value}")
