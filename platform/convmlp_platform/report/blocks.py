"""The parts that a page is made of: plain values, which the template alone turns into HTML.

All text is text: nothing of it is trusted, and the template escapes it. `Markup` is what `svg_charts` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Literal

from markupsafe import Markup

Tone = Literal["plain", "good", "bad", "faint"]


@dataclass(frozen=True)
class Sentence:
    """A paragraph; `tone` says whether it is good or bad news, which its words say as well."""

    kind: ClassVar[str] = "sentence"
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class FactTable:
    """Names and what they are, a row each."""

    kind: ClassVar[str] = "facts"
    caption: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class GridTable:
    """A table with a header row; each row's first cell is its header. `numeric`: columns that stand to the right.
    `swatches`: a class of colour for each row, where there are any."""

    kind: ClassVar[str] = "grid"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    swatches: Sequence[str] = ()


@dataclass(frozen=True)
class Drawing:
    """A chart, and the same as a table for those who can't see it."""

    kind: ClassVar[str] = "drawing"
    svg: Markup
    caption: str
    table: GridTable | None = None


@dataclass(frozen=True)
class EmbeddedPicture:
    """An image within the page; `uri` begins with `data:`."""

    kind: ClassVar[str] = "picture"
    uri: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Verbatim:
    """Text as a command prints it; `label` says what it is."""

    kind: ClassVar[str] = "verbatim"
    label: str
    text: str


@dataclass(frozen=True)
class Folded:
    """What is shown once it is asked for."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: Sequence[Block]


Block = Sentence | FactTable | GridTable | Drawing | EmbeddedPicture | Verbatim | Folded


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page."""

    label: str
    value: str
    note: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class ReportSection:
    """A part of the page under a heading; `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


MOST_ROWS = 60
"""Of a longer table its beginning and its end are shown."""


def ends_of(rows: Sequence[Sequence[str]], most: int = MOST_ROWS) -> list[Sequence[str]]:
    """The rows, or of many the first and the last with a row between that counts the others."""
    if len(rows) <= most:
        return list(rows)
    half = most // 2
    between = [f"… {len(rows) - 2 * half:,} more …", *[""] * (len(rows[0]) - 1)]
    return [*rows[:half], between, *rows[-half:]]


def cut(text: str, most: int = 400) -> str:
    """A text in one line, with an ellipsis for its end where it is longer than `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"


def minute(seconds: float) -> str:
    """`2026-11-30 12:05 UTC`, of unix seconds."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
