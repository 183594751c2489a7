"""Images that somebody wants predictions for, from whatever they come as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.errors import DataError
from data_prep.config import ExifOrientation
from data_prep.errors import RejectedSample
from data_prep.images.image_file import decode_image, read_image_file, to_rgb
from data_prep.images.orientation import UPRIGHT, orientation_of_image, turned_image

ImageLike = Image.Image | bytes | str | Path


def open_image(
    image: ImageLike, position: int = 0, exif_orientation: ExifOrientation = "apply"
) -> Image.Image:
    """RGB pixels, decoded fully, by preparation's own rules for image files.

    Args:
        image: a path, a file's bytes, or an opened image.
        position: in the list of images, for messages.
        exif_orientation: whether the image is turned upright, or taken as it is stored: as the model's training data.

    Raises:
        DataError: naming the file, or the `position` in the list of images for bytes.
    """
    what = f"image {position}" if isinstance(image, (bytes, Image.Image)) else str(image)
    try:
        if isinstance(image, Image.Image):
            decoded = image
        else:
            decoded = decode_image(image if isinstance(image, bytes) else read_image_file(Path(image)))
        orientation = UPRIGHT if exif_orientation == "ignore" else orientation_of_image(decoded)
        return turned_image(to_rgb(decoded), orientation)
    except FileNotFoundError:
        raise DataError(f"{what}: no such image file") from None
    except (OSError, ValueError, MemoryError) as error:
        reason = error if isinstance(error, RejectedSample) else f"{type(error).__name__}: {error}"
        raise DataError(f"{what}: not a readable image: {reason}") from error


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Shape (height, width, 3)."""
    return np.asarray(image.convert("RGB"))
