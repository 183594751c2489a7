"""From a payload to pixels: libjpeg-turbo for JPEG, Pillow for all else that an image file may be."""

from __future__ import annotations

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_prep.image_file import expect_usual_size, open_image
from data_prep.jpeg import expect_affordable
from data_prep.orientation import UPRIGHT, orientation_of_jpeg, turned_pixels, turned_size

Pixels = NDArray[np.uint8]

# What libjpeg-turbo turns into the same RGB as Pillow; CMYK and YCCK are Pillow's.
_COLORSPACES = ("YCbCr", "Gray", "RGB")
_JPEG_START = b"\xff\xd8"


def stored_orientation(content: bytes) -> int:
    """How an image file of a dataset is to be turned: preparation leaves that to readers with JPEG files alone."""
    return orientation_of_jpeg(content) if content.startswith(_JPEG_START) else UPRIGHT


def decode(
    content: bytes | memoryview,
    smallest: tuple[int, int] | None = None,
    *,
    orientation: int | None = None,
) -> Pixels:
    """An image file's RGB pixels, shape (height, width, 3).

    Args:
        content: a JPEG, PNG, BMP or WebP file.
        smallest: None decodes exactly as Pillow does (bit-identical on 400 ImageNet files). A (height, width)
            allows what training doesn't notice: libjpeg-turbo's fast transforms, and a JPEG at 1/2, 3/8, 1/4 or
            1/8 of its size that is not below this one. Scales between 1/2 and 1 have no vectorised
            transform and take longer than the whole image (5/8: 1,261 µs, 1: 1,115, 1/2: 1,014). Of the turned image.
        orientation: how to turn it, 1 to 8 as EXIF numbers them; None reads it from the file's own EXIF data.

    Raises:
        OSError, ValueError: it can't be decoded.
    """
    content = bytes(content)
    if orientation is None:
        orientation = stored_orientation(content)
    if smallest is not None:
        smallest = turned_size(*smallest, orientation)
    return turned_pixels(_decode(content, smallest), orientation)


def _decode(content: bytes, smallest: tuple[int, int] | None) -> Pixels:
    if content.startswith(_JPEG_START):
        expect_affordable(content, None)
        try:
            return _decode_jpeg(content, smallest)
        except ValueError:
            pass  # cut short, or of a kind that libjpeg-turbo doesn't turn into RGB: Pillow decides
    return np.asarray(open_image(content)[0].convert("RGB"))


def _decode_jpeg(content: bytes, smallest: tuple[int, int] | None) -> Pixels:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    expect_usual_size(width, height)
    if colorspace not in _COLORSPACES:
        raise ValueError("not RGB")
    if smallest is None:
        return simplejpeg.decode_jpeg(content)
    return simplejpeg.decode_jpeg(
        content, fastdct=True, fastupsample=True, min_height=smallest[0], min_width=smallest[1], min_factor=2
    )
