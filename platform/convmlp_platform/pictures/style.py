"""The style that all pictures share: fonts, colours of classes, and the colours of paper and ink.

Several pictures of one thing in a row, each under its name.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (28, 30, 34)
FAINT: Color = (120, 124, 132)
FRAME: Color = (226, 228, 232)
ACCENT: Color = (46, 104, 178)
WRONG: Color = (196, 78, 0)
"""Colour of what is wrong, never its only sign (vermilion stays apart from blue and grey for colour-blind eyes)."""

# Ten colours that are told apart at a glance, also by most colour-blind eyes (Tableau 10, 2016); then generated.
_FIRST: tuple[Color, ...] = (
    (78, 121, 167),
    (242, 142, 43),
    (89, 161, 79),
    (225, 87, 89),
    (118, 183, 178),
    (237, 201, 72),
    (176, 122, 161),
    (255, 157, 167),
    (156, 117, 95),
    (60, 160, 220),
)
_GOLDEN = 0.618033988749895


def class_color(label: int) -> Color:
    """The colour of a class: the same in every picture; neighbours in the list of classes differ much."""
    if 0 <= label < len(_FIRST):
        return _FIRST[label]
    hue = label * _GOLDEN % 1
    lightness = (0.45, 0.62, 0.54)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, (0.75, 0.6)[label // 3 % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


def ink_on(color: Color) -> Color:
    """Black or white, whichever is easier to read on `color` (by its luma, ITU-R BT.601)."""
    red, green, blue = color
    return (20, 20, 20) if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else (255, 255, 255)


def hex_color(color: Color) -> str:
    """As matplotlib takes it: `#1c1e22`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows most alphabets of class names."""
    from pathlib import Path

    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def shorten(text: str, width: float, size: int, *, keep_end: bool = False) -> str:
    """`text`, with an ellipsis for its end (or its start) where it is wider than `width` pixels."""
    face = font(size)
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(f"{text}…") > width:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text.lstrip()}" if keep_end else f"{text.rstrip()}…"


def write(
    picture: Image.Image, at: tuple[float, float], text: str, size: int, color: Color, bold: bool = False
) -> None:
    """Write one line with its upper left corner at `at`."""
    ImageDraw.Draw(picture).text(at, text, fill=color, font=font(size, bold))


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
