"""Photometric distortion: the colour augmentation of semantic segmentation's published recipes."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from convmlp.pixels import Pixels

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
