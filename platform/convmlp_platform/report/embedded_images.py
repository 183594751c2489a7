"""Images within a page, of a bounded size."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_WIDEST = 1600
_TRIES = 5
_MOST_PIXELS = 1 << 26


@dataclass(frozen=True)
class EncodedImage:
    """An image as a `data:` URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def encoded(image: Image.Image, budget: int) -> EncodedImage | None:
    """The image as WebP of at most `budget` bytes, made smaller until it fits; None: it never does."""
    whole = image.convert("RGB")
    scale = min(1.0, _WIDEST / whole.width)
    for quality in (85, *[70] * (_TRIES - 1)):
        size = (max(1, round(scale * whole.width)), max(1, round(scale * whole.height)))
        smaller = whole if size == whole.size else whole.resize(size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        smaller.save(buffer, format="WEBP", quality=quality, method=2)
        if buffer.tell() <= budget:
            text = base64.b64encode(buffer.getvalue()).decode()
            return EncodedImage(f"data:image/webp;base64,{text}", *size)
        scale *= 0.9 * math.sqrt(budget / buffer.tell())  # bytes go with the area, about
    return None


def encoded_file(path: Path, budget: int) -> EncodedImage | None:
    """A PNG or JPEG file of ours as `encoded` has it.

    Raises:
        OSError, ValueError: it can't be read, is damaged, or has more pixels than any picture of ours.
    """
    with Image.open(path, formats=["PNG", "JPEG"]) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"{path} has {image.width:,} x {image.height:,} pixels")
        return encoded(image, budget)
