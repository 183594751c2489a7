"""Images that somebody wants predictions for, from whatever they come as."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convmlp_platform.errors import DataError

ImageLike = Image.Image | bytes | str | Path


def open_image(image: ImageLike, position: int = 0) -> Image.Image:
    """Decode fully, upright (EXIF orientation applied).

    Raises:
        DataError: naming the file, or the `position` in the list of images for bytes.
    """
    what = f"image {position}" if isinstance(image, (bytes, Image.Image)) else str(image)
    try:
        if isinstance(image, Image.Image):
            decoded = image
        else:
            decoded = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        upright = ImageOps.exif_transpose(decoded)
        upright.load()
    except FileNotFoundError:
        raise DataError(f"{what}: no such image file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what}: not a readable image: {error}") from error
    return upright


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Shape (height, width, 3)."""
    return np.asarray(image.convert("RGB"))
