"""Partial decoding: a rectangle of a JPEG's pixels, bit for bit those that decoding the whole image gives there.

Training looks at a random box of a photograph, 0.4 of its area on average. Two ways to decode no more than that takes:

- The compiled module `_convmlp_jpeg`, where it is installed: libjpeg-turbo leaves out the transform of what lies above
  and beside the box, and stops after its last row. 0.70 to 0.77 of a whole decode's time, for ImageNet's boxes.
- Otherwise simplejpeg is given the file with a height in its header that ends just below the box: 0.87 of the time.

What comes of a file doesn't depend on which way is at hand, damage included: a warning of libjpeg in a row of blocks
down to the box's last sends its reader to the whole decode, and what lies below is looked at by neither. Files in which
the two could differ (several scans, restart markers, a tail that isn't the scan's) are decoded whole everywhere.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from data_prep.images.image_file import MAX_PIXELS, MAX_SIDE
from data_prep.images.jpeg import JpegHeader, first_marker, is_one_whole_scan, parse_header
from data_prep.images.jpeg_decode import EXTRANEOUS

Pixels = NDArray[np.uint8]
Rectangle = tuple[int, int, int, int]
"""Top, left, height, width."""

_SAMPLINGS = {
    ((1, 1),),
    *(((across, down), (1, 1), (1, 1)) for across, down in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1))),
}
"""Grey, and those of colour that are in use."""
_SMALLER = (1, 2, 3, 4)
"""Eighths of its size at which decoding an image takes less time than decoding it whole."""


def header_for_boxes(content: bytes) -> JpegHeader | None:
    """The header of a JPEG whose boxes can be decoded alone; None for any other file."""
    header = parse_header(content)
    module, _ = _compiled()
    if (
        header is None
        or header.sampling not in _SAMPLINGS
        or max(header.height, header.width) > MAX_SIDE
        or header.height * header.width > MAX_PIXELS
        or not is_one_whole_scan(content, header, first_marker if module is None else module.first_marker)
    ):
        return None
    return header


def eighths_for(header: JpegHeader, smallest: tuple[int, int]) -> int:
    """The scale, in eighths, that simplejpeg chooses with `min_factor` 2 for an image that isn't to be below
    `smallest`, height and width.

    It finds a size, and libjpeg-turbo the largest scale of that size: of a few pixels several have the same.
    """
    wanted = min(header.height, smallest[0]), min(header.width, smallest[1])
    for eighths in _SMALLER:
        height, width = size = size_at(header, eighths)
        if height >= wanted[0] and width >= wanted[1]:
            return next(scale for scale in range(8, 0, -1) if size_at(header, scale) == size)
    return 8


def size_at(header: JpegHeader, eighths: int) -> tuple[int, int]:
    """Height and width of the image decoded at so many eighths of its size."""
    return -(-header.height * eighths // 8), -(-header.width * eighths // 8)


def decode_box(content: bytes, header: JpegHeader, box: Rectangle, eighths: int) -> Pixels | None:
    """RGB pixels of the box, shape (height, width, 3), by libjpeg's fast transform and upsampling.

    Args:
        content: the file.
        header: its header, of `header_for_boxes`.
        box: within the image of `size_at`.
        eighths: the scale, of `eighths_for`.

    Returns:
        The pixels; None where libjpeg warns of the box's rows or of what lies above them.
    """
    module, _ = _compiled()
    return (
        _to_last_row(content, header, box, eighths)
        if module is None
        else _cropped(module, content, box, eighths)
    )


def way_of_decoding() -> str:
    """Says for people how boxes are decoded here."""
    module, reason = _compiled()
    if module is None:
        return f"JPEG rows down to each crop's last ({reason})"
    return f"JPEG crops alone, by libjpeg-turbo {module.LIBJPEG_TURBO}"


def _cropped(module: Any, content: bytes, box: Rectangle, eighths: int) -> Pixels | None:
    out = np.empty((*box[2:], 3), np.uint8)
    try:
        module.crop(content, out, *box, eighths)
    except ValueError:
        return None
    return out


def _to_last_row(content: bytes, header: JpegHeader, box: Rectangle, eighths: int) -> Pixels | None:
    """By a file that ends, according to its header, with the row of blocks that holds the box's last row."""
    top, left, height, width = box
    blocks = max(down for _, down in header.sampling)
    rows = min(-(-(top + height) // (blocks * eighths)) * blocks * 8, header.height)
    cut = bytearray(content)
    cut[header.frame + 5 : header.frame + 7] = rows.to_bytes(2)
    out = np.empty((-(-rows * eighths // 8), size_at(header, eighths)[1], 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(
            cut,
            fastdct=True,
            fastupsample=True,
            min_height=out.shape[0],
            min_width=out.shape[1],
            min_factor=2,
            buffer=out,
        )
    except ValueError as error:
        # The first warning counts: where it is of the rest of the file, which is passed over, `out` is whole.
        if not EXTRANEOUS.search(str(error)):
            return None
    return out[top : top + height, left : left + width]


@cache
def _compiled() -> tuple[Any, str]:
    """The compiled module, or None and the reason."""
    try:
        module = importlib.import_module("_convmlp_jpeg")
        if _gives_the_same(module):
            return module, ""
    except (ImportError, AttributeError, TypeError) as error:  # the last two: of another version
        return None, str(error)
    return None, "the pixels of _convmlp_jpeg aren't simplejpeg's on this machine"


def _gives_the_same(module: Any) -> bool:
    """Do both ways agree here on noise, which leaves no rounding of theirs untried? 2 ms, once a process."""
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    for sampling in ("444", "422", "420"):
        content = simplejpeg.encode_jpeg(noise, 90, colorsubsampling=sampling)
        header = parse_header(content)
        if header is None or module.first_marker(content, header.scan + 2) != len(content) - 2:
            return False
        for eighths in (4, 8):
            height, width = size_at(header, eighths)
            box = (9, 7, height - 17, width - 12)
            found, expected = (
                _cropped(module, content, box, eighths),
                _to_last_row(content, header, box, eighths),
            )
            if found is None or expected is None or not np.array_equal(found, expected):
                return False
    return True
