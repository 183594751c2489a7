"""Many small pictures with captions on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from convmlp_platform.pictures.style import FAINT, FRAME, INK, PAPER, Color, font, shorten, write

_MARGIN = 28
_GAP = 14
_TITLE, _SUBTITLE, _CAPTION, _NOTE = 22, 13, 13, 11


@dataclass(frozen=True)
class Cell:
    """One picture, at most as large as the sheet's cells; its caption (the label); smaller lines below: a detail, a
    note; and the colours of its caption and its frame."""

    picture: Image.Image
    caption: str
    note: str = ""
    detail: str = ""
    ink: Color = INK
    frame: Color = FRAME


def fit(size: tuple[int, int], room: tuple[int, int]) -> float:
    """How many times larger an image of `size` (width, height) must become to just fit into `room`."""
    scale = min(room[0] / size[0], room[1] / size[1])
    return (
        float(math.floor(scale)) if scale >= 3 else scale
    )  # tiny images: every pixel a square of whole pixels


def contact_sheet(
    cells: Sequence[Cell],
    room: tuple[int, int],
    *,
    columns: int,
    title: str,
    subtitle: str = "",
    legend: Sequence[tuple[str, Color]] = (),
) -> Image.Image:
    """A page of cells in rows of `columns`.

    Args:
        cells: pictures no larger than `room`.
        room: width and height of a cell's picture, pixels.
        columns: cells a row.
        title, subtitle: the page's headlines.
        legend: names with the colours that stand for them, below the cells.
    """
    columns = max(1, min(columns, len(cells)))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.picture.height for cell in row) for row in rows]
    lines = any(cell.note for cell in cells) + any(cell.detail for cell in cells)
    text_height = 6 + _CAPTION + 4 + lines * (_NOTE + 4)
    top = _MARGIN + _TITLE + 8 + (_SUBTITLE + 8 if subtitle else 0) + 10
    headline = max(font(_TITLE, True).getlength(title), font(_SUBTITLE).getlength(subtitle))
    width = max(2 * _MARGIN + columns * room[0] + (columns - 1) * _GAP, math.ceil(headline) + 2 * _MARGIN)
    entries = _legend_layout(legend, width)
    legend_height = entries[-1][1] + 24 if entries else 0
    below = top + sum(heights) + len(rows) * (text_height + _GAP)
    page = Image.new("RGB", (width, below + legend_height + _MARGIN - _GAP), PAPER)
    write(page, (_MARGIN, _MARGIN - 6), title, _TITLE, INK, bold=True)
    write(page, (_MARGIN, _MARGIN + _TITLE + 6), subtitle, _SUBTITLE, FAINT)
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            _paste_cell(page, cell, (_MARGIN + column * (room[0] + _GAP), top), (room[0], height))
        top += height + text_height + _GAP
    for (name, color), (x, y) in zip(legend, entries, strict=True):
        ImageDraw.Draw(page).rectangle((x, below + y, x + 14, below + y + 14), fill=color)
        write(page, (x + 20, below + y - 1), name, _CAPTION, INK)
    return page


def _paste_cell(page: Image.Image, cell: Cell, at: tuple[int, int], room: tuple[int, int]) -> None:
    x, y = at
    left, top = x + (room[0] - cell.picture.width) // 2, y + (room[1] - cell.picture.height) // 2
    page.paste(cell.picture, (left, top))
    frame = (left - 1, top - 1, left + cell.picture.width, top + cell.picture.height)
    ImageDraw.Draw(page).rectangle(frame, outline=cell.frame)
    if cell.frame != FRAME:
        ImageDraw.Draw(page).rectangle(
            (left - 3, top - 3, frame[2] + 2, frame[3] + 2), outline=cell.frame, width=3
        )
    line = y + room[1] + 6
    _centred(page, cell.caption, x, line, room[0], _CAPTION, cell.ink)
    line += _CAPTION + 4
    if cell.detail:
        _centred(page, cell.detail, x, line, room[0], _NOTE, INK)
        line += _NOTE + 4
    _centred(page, cell.note, x, line, room[0], _NOTE, FAINT, keep_end=True)


def _centred(
    page: Image.Image, text: str, x: int, y: int, width: int, size: int, color: Color, keep_end: bool = False
) -> None:
    text = shorten(text, width, size, keep_end=keep_end)
    write(page, (x + (width - font(size).getlength(text)) / 2, y), text, size, color)


def _legend_layout(legend: Sequence[tuple[str, Color]], width: int) -> list[tuple[int, int]]:
    """Upper left corners (x, y below the legend's top) of the entries, in rows from left to right."""
    corners, x, y = [], _MARGIN, 0
    for name, _ in legend:
        entry = 20 + math.ceil(font(_CAPTION).getlength(name)) + 22
        if x > _MARGIN and x + entry > width - _MARGIN:
            x, y = _MARGIN, y + 24
        corners.append((x, y))
        x += entry
    return corners
