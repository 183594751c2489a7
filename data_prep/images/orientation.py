"""EXIF orientation: how a camera was held, and so how its pixels are to be turned before anyone looks at them.

Preparation, readers and predictors all ask here, so that a photo is trained and predicted the same way up. JPEG files
keep their bytes: a dataset of turned photos (`source.exif_orientation: apply`) is turned as it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.config import ExifOrientation
from data_prep.images.jpeg import camera_data

UPRIGHT = 1
"""The orientation of most files; so counts what isn't 2 to 8."""

_TAG, _SHORT = 0x0112, 3
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def other_view(exif_orientation: ExifOrientation) -> str:
    """Returns the text that a rejection adds where an annotation seems to be drawn on the image in its other
    orientation, the one that the job doesn't see."""
    if exif_orientation == "apply":
        return (
            " when turned upright by its EXIF orientation: for annotations that were drawn on the pixels as stored, "
            "set source.exif_orientation: ignore"
        )
    return (
        " as stored: for annotations that were drawn on upright images (the file has an EXIF orientation), "
        "set source.exif_orientation: apply"
    )


def orientation_of_jpeg(content: bytes) -> int:
    """1 to 8, of a JPEG's EXIF data, or else of its XMP data, as Pillow's `exif_transpose` reads them: 5 µs."""
    return _orientation(*camera_data(content))


def orientation_of_image(image: Image.Image) -> int:
    """1 to 8, of an opened image, by the same rule.

    Pillow's own parser copies what each of thousands of entries names, and warns of each that is damaged.
    """
    info: Mapping[Any, Any] = image.info
    exif, xmp = info.get("exif", b""), info.get("xmp", b"")
    if not exif and isinstance(text := info.get("Raw profile type exif"), str):  # ImageMagick's PNGs
        with suppress(ValueError):
            exif = bytes.fromhex("".join(text.split("\n")[3:]))
    return _orientation(exif.removeprefix(b"Exif\0\0"), xmp if isinstance(xmp, bytes) else b"")


def has_sides_swapped(orientation: int) -> bool:
    """Returns whether turning exchanges height and width."""
    return orientation >= 5


def turned_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width after turning (and, as turning back needs the same exchange, before it)."""
    return (width, height) if has_sides_swapped(orientation) else (height, width)


def turned_image(image: Image.Image, orientation: int) -> Image.Image:
    """The image upright."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def turned_pixels(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels of shape (height, width, 3) upright, in one piece of memory, as `turned_image` turns them."""
    if orientation == UPRIGHT:
        return pixels
    if has_sides_swapped(orientation):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def stored_rectangle(
    rectangle: tuple[int, int, int, int], size: tuple[int, int], orientation: int
) -> tuple[int, int, int, int]:
    """Where a rectangle of the upright image lies in the stored one; both as top, left, height, width.

    Args:
        size: height and width of the upright image.
    """
    top, left, height, width = rectangle
    if orientation in (3, 4, 7, 8):
        top = size[0] - top - height
    if orientation in (2, 3, 6, 7):
        left = size[1] - left - width
    return (left, top, width, height) if has_sides_swapped(orientation) else (top, left, height, width)


def _orientation(exif: bytes, xmp: bytes) -> int:
    found = _of_exif(exif)
    if found is None and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return found if found in _TURNS else UPRIGHT


def _of_exif(tiff: bytes) -> int | None:
    """Of the first directory of TIFF 6.0 entries (tag, type, count, value; 12 bytes each)."""
    if tiff[:2] not in _BYTE_ORDERS:
        return None
    order = _BYTE_ORDERS[tiff[:2]]

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4) + 2
    last = min(first + 12 * number(first - 2, 2), len(tiff) - 11)
    for at in range(first, last, 12):
        if number(at, 2) == _TAG and number(at + 2, 2) == _SHORT:
            return number(at + 8, 2)
    return None
