"""Text files that people write: tables of class names, one class a line. Editors on Windows begin them with a mark."""

from __future__ import annotations

import codecs
from pathlib import Path

from data_prep.errors import DataPrepError

_MAX_BYTES = 64 << 20
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, field: str = "") -> str:
    """A UTF-8 file; a byte order mark at its beginning is no part of it, and lines end with a newline alone.

    Args:
        path: the file.
        field: the job's setting that names it.

    Raises:
        DataPrepError: it can't be read, is in another encoding, or has more than 64 MiB.
    """
    prefix = f"{field}: " if field else ""
    where = f"{prefix}{path}"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataPrepError(f"{prefix}can't read {path}: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise DataPrepError(f"{where} has more than {_MAX_BYTES:,} bytes: it is no table of names")
    return decode_text(content, where)


def decode_text(content: bytes, where: str) -> str:
    """Text as of `read_text`; `where` names it in messages.

    Raises:
        DataPrepError: it is not UTF-8.
    """
    refuse_utf16(content, where)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataPrepError(
            f"{where} is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}; save it as UTF-8"
        ) from None


def refuse_utf16(content: bytes, where: str) -> None:
    """Look at the first four bytes of a text: UTF-16 begins with its mark, or with plain signs of two bytes.

    Raises:
        DataPrepError: they are UTF-16.
    """
    if content.startswith(_UTF16) or (len(content) >= 4 and 0 in content[:2] and 0 in content[2:4]):
        raise DataPrepError(f"{where} is UTF-16 text (Windows calls it Unicode): save it as UTF-8")
