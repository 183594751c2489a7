"""Pixels in another order, the same for every image: the experiment of section 3.4 of MLP-Mixer (arXiv:2105.01601).

"patches" shuffles the patches of an image, and the pixels within each patch by one permutation that all patches share;
"pixels" shuffles all pixels of the image. A Mixer whose patches have that size can't tell the first from the original:
permuting the columns of its stem and the rows and columns of its token mixing gives the same function, so training on
such images is, in distribution, training on the originals. Of a network already trained nothing of the kind holds.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convmlp.transforms.image_transforms import EvalTransform, TrainTransform, View

Kind = Literal["patches", "pixels"]
Order = NDArray[np.int64]
"""Shape (height * width,), row by row: where each pixel of the permuted image comes from."""


def pixel_order(kind: Kind, height: int, width: int, *, patch_size: int = 16, seed: int = 0) -> Order:
    """A permutation of an image's pixels, a function of its arguments alone.

    Args:
        patch_size: side of a patch in pixels; "pixels" ignores it.
        seed: of the draw.

    Raises:
        ValueError: the image isn't made of whole patches.
    """
    if kind == "pixels":
        return _drawn(seed, height * width)
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"images of {height}x{width} px are not made of whole patches of {patch_size}x{patch_size}: "
            "choose a patch size that divides both sides"
        )
    down, across = height // patch_size, width // patch_size
    pixels = np.arange(height * width, dtype=np.int64).reshape(down, patch_size, across, patch_size)
    patches = pixels.transpose(0, 2, 1, 3).reshape(down * across, patch_size**2)
    moved = patches[_drawn(seed, down * across)][:, _drawn(seed + 1, patch_size**2)]
    return moved.reshape(down, across, patch_size, patch_size).transpose(0, 2, 1, 3).reshape(-1)


def _drawn(seed: int, size: int) -> Order:
    # The legacy generator: numpy promises that its streams never change.
    return np.random.RandomState(seed).permutation(size).astype(np.int64)


def permute_pixels(images: Tensor, order: Order) -> Tensor:
    """Images [..., H, W] of any dtype with every pixel, all its channels together, moved as `order` says."""
    index = torch.from_numpy(order).to(images.device)
    return images.flatten(-2)[..., index].reshape(images.shape)


def instead_of(order: Order, applied: Order | None) -> Order:
    """Returns the order that turns images already permuted by `applied` into images permuted by `order` alone."""
    return order if applied is None else np.argsort(applied)[order]


class PermutedTrainTransform:
    """A training transform whose finished images get their pixels permuted: all draws stay what they were."""

    def __init__(self, transform: TrainTransform, order: Order) -> None:
        self.transform, self.order = transform, order
        self.size, self.dtype = transform.size, transform.dtype

    def seed(self, key: int) -> None:
        """As the transform's."""
        self.transform.seed(key)

    def view(self, height: int, width: int) -> View:
        """As the transform's."""
        return self.transform.view(height, width)

    def render(self, pixels: NDArray[np.uint8], view: View, out: NDArray[Any]) -> None:
        """Fill `out` (size, size, 3)."""
        self.transform.render(pixels, view, out)
        _permute_in_place(out, self.order)

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image → normalised float32 [3, size, size]."""
        return permute_pixels(self.transform(image), self.order)


class PermutedEvalTransform:
    """An evaluation transform whose finished images get their pixels permuted."""

    def __init__(self, transform: EvalTransform, order: Order) -> None:
        self.transform, self.order = transform, order
        self.size, self.dtype = transform.size, transform.dtype

    def render(self, image: Image.Image, out: NDArray[np.uint8]) -> None:
        """Fill `out` (size, size, 3)."""
        self.transform.render(image, out)
        _permute_in_place(out, self.order)

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image → normalised float32 [3, size, size]."""
        return permute_pixels(self.transform(image), self.order)


def _permute_in_place(pixels: NDArray[Any], order: Order) -> None:
    """Of an image (H, W, 3) that lies in one piece."""
    flat = pixels.reshape(-1, pixels.shape[-1])
    assert np.shares_memory(flat, pixels)
    flat[:] = flat[order]
