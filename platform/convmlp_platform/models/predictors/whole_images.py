"""Whole images as a detector's or segmenter's evaluation sees them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from convmlp.transforms.joint_view import JointView
from convmlp.transforms.pixels import Normalize
from convmlp_platform.models.bundle import BundleSpec
from convmlp_platform.models.predictors.given_images import ImageLike, open_image, rgb_pixels


class _Transform(Protocol):
    def view(self, height: int, width: int) -> JointView: ...


class WholeImages:
    """Opens, resizes and normalises one image after the other.

    Args:
        transform: of the task's evaluation.
        spec: of the bundle.
        device: for the results.
    """

    def __init__(self, transform: _Transform, spec: BundleSpec, device: torch.device) -> None:
        self._transform, self._device = transform, device
        self._exif_orientation = spec.exif_orientation
        self._normalize = Normalize(spec.mean, spec.std)

    def prepared(self, image: ImageLike, position: int) -> tuple[Tensor, tuple[int, int]]:
        """float32 [3, H, W] in channels-last memory, and the height and width of the image as it was given.

        Raises:
            DataError: it is missing or unreadable.
        """
        pixels = rgb_pixels(open_image(image, position, self._exif_orientation))
        height, width = pixels.shape[:2]
        view = self._transform.view(height, width)
        seen = np.empty((*view.size, 3), np.uint8)
        view.pixels(pixels, seen)
        return self._normalize(torch.from_numpy(seen).permute(2, 0, 1).to(self._device)), (height, width)
