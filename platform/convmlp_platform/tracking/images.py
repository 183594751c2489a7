"""Images that somebody wants predictions for, from whatever they come as."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.errors import DataError
from data_prep.errors import RejectedSample
from data_prep.image_file import decode_image, read_image_file, to_rgb

ImageLike = Image.Image | bytes | str | Path
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SHORT = 3
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II": "little", b"MM": "big"}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def open_image(image: ImageLike, position: int = 0) -> Image.Image:
    """RGB pixels, decoded fully, upright (EXIF orientation applied), by preparation's own rules for image files.

    Raises:
        DataError: naming the file, or the `position` in the list of images for bytes.
    """
    what = f"image {position}" if isinstance(image, (bytes, Image.Image)) else str(image)
    try:
        if isinstance(image, Image.Image):
            decoded = image
        else:
            decoded = decode_image(image if isinstance(image, bytes) else read_image_file(Path(image)))
        turn = _turn(decoded)
        rgb = to_rgb(decoded)
        return rgb if turn is None else rgb.transpose(turn)
    except FileNotFoundError:
        raise DataError(f"{what}: no such image file") from None
    except (OSError, ValueError, MemoryError) as error:
        reason = error if isinstance(error, RejectedSample) else f"{type(error).__name__}: {error}"
        raise DataError(f"{what}: not a readable image: {reason}") from error


def rgb_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Shape (height, width, 3)."""
    return np.asarray(image.convert("RGB"))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn it upright, by its EXIF data or else its XMP data, as Pillow's `exif_transpose` does.

    Pillow's own parser copies what each of thousands of entries names, and warns of each that is damaged.
    """
    info = image.info
    stored = info.get("exif", b"")
    if not stored and isinstance(text := info.get("Raw profile type exif"), str):  # ImageMagick's PNGs
        with suppress(ValueError):
            stored = bytes.fromhex("".join(text.split("\n")[3:]))
    found = _exif_orientation(stored.removeprefix(b"Exif\0\0"))
    xmp = info.get("xmp", b"")
    if found is None and isinstance(xmp, bytes) and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return _TURNS.get(found or 1)


def _exif_orientation(tiff: bytes) -> int | None:
    """Of the first directory of TIFF 6.0 entries (tag, type, count, value; 12 bytes each)."""
    if tiff[:2] not in _BYTE_ORDERS:
        return None
    order = _BYTE_ORDERS[tiff[:2]]

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    first = number(4, 4) + 2
    last = min(first + 12 * number(first - 2, 2), len(tiff) - 11)
    for at in range(first, last, 12):
        if number(at, 2) == _ORIENTATION and number(at + 2, 2) == _SHORT:
            return number(at + 8, 2)
    return None
