"""Operations on pixels: a box of an image resized into its place in a batch, and normalisation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
"""An RGB image, shape (height, width, 3)."""

# The out= forms of torch.nn.functional.interpolate(antialias=True): the result goes straight into the batch. For
# 500 x 375 → 224 they take 120 (bilinear) and 150 µs a core, Pillow's resize 620 and 960; the values differ from
# Pillow's by a rounding (mean 0.03 of 255).
_RESIZE = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
INTERPOLATIONS = tuple(_RESIZE)


class Box(NamedTuple):
    """A rectangle of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def scaled(self, seen: tuple[int, int], stored: tuple[int, int]) -> Box:
        """The box in an image that was decoded as `seen` (height, width) instead of its `stored` size."""
        if seen == stored:
            return self
        high, wide = seen[0] / stored[0], seen[1] / stored[1]
        height = min(max(1, round(self.height * high)), seen[0])
        width = min(max(1, round(self.width * wide)), seen[1])
        top, left = round(self.top * high), round(self.left * wide)
        return Box(min(top, seen[0] - height), min(left, seen[1] - width), height, width)

    def cut(self, image: Pixels, stored: tuple[int, int]) -> Pixels:
        """Its pixels of a whole image, which may have been decoded smaller than its `stored` size."""
        top, left, height, width = self.scaled(image.shape[:2], stored)
        return image[top : top + height, left : left + width]


def random_resized_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Inception's crop (arXiv:1409.4842) with timm's draws, from Python's `random`.

    Ten tries at a box of a random share of the area and a random aspect ratio, else the largest central one
    whose ratio is allowed.
    """
    area, low, high = height * width, math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = random.uniform(*scale) * area
        aspect = math.exp(random.uniform(low, high))
        wide, tall = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return Box(random.randint(0, height - tall), random.randint(0, width - wide), tall, wide)
    tall, wide = height, width
    if width / height < min(ratio):
        tall = max(1, round(width / min(ratio)))
    elif width / height > max(ratio):
        wide = max(1, round(height * max(ratio)))
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def resize_into(out: Pixels, pixels: Pixels, interpolation: str) -> None:
    """Fill `out` (H, W, 3) with `pixels` (height, width, 3), antialiased where they shrink.

    Args:
        interpolation: "bilinear" or "bicubic".
    """
    if pixels.shape == out.shape:
        out[:] = pixels
        return
    # The vectorised path takes pixels in one piece, and torch takes those that may be written without a warning.
    if not (pixels.flags.c_contiguous and pixels.flags.writeable):
        pixels = pixels.copy()
    source, target = (torch.from_numpy(image[None]).permute(0, 3, 1, 2) for image in (pixels, out))
    _RESIZE[interpolation](source, list(out.shape[:2]), False, None, None, out=target)


def flip_in_place(pixels: Pixels) -> None:
    """Mirror left and right. torch's flip has a vectorised path for interleaved RGB (15 µs for 224 px)."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    image.copy_(image.flip(-1))


class Normalize:
    """uint8 [..., 3, H, W] on any device → float32 `(pixel / 255 - mean) / std`, as one multiply-add.

    Args:
        mean, std: per channel, of pixels in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._scale = torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """The memory layout is kept."""
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        out = torch.empty_like(images, dtype=torch.float32)
        return torch.addcmul(self._shift, images, self._scale, out=out)
