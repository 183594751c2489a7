"""Several pictures of one thing in a row, each under its name."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from convmlp_platform.pictures.style import FAINT, PAPER, shorten, write

_GAP, _BAND, _TEXT = 8, 18, 12


def side_by_side(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """One picture of all, in their order, on white.

    Args:
        pictures: name → RGB picture; at least one.
    """
    width = sum(picture.width for picture in pictures.values()) + _GAP * (len(pictures) - 1)
    height = max(picture.height for picture in pictures.values())
    row = Image.new("RGB", (width, _BAND + height), PAPER)
    left = 0
    for name, picture in pictures.items():
        write(row, (left, 0), shorten(name, picture.width, _TEXT), _TEXT, FAINT)
        row.paste(picture, (left, _BAND + (height - picture.height) // 2))
        left += picture.width + _GAP
    return row
