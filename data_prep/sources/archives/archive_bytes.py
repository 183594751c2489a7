"""The bytes of archives: read once from front to back, or at the places of samples.

Published archives (`.tar.gz`, `.tgz`, `.tar`) are read from front to back in bounded memory and time. Python's tarfile
follows what a hostile archive says: sizes below zero lead it in a circle, extended headers are read whole, however
large. Headers are parsed by `tar_members` here; what an archive may unpack to is limited by its size.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Protocol

from data_prep.errors import DataPrepError, RejectedSample
from data_prep.sources.archives.tar_members import TarMember, streamed_members

_CHUNK = 1 << 20
_MAX_RATIO = 20
_MAX_SMALL = 100_000_000
"""Bytes that even a small archive may unpack to; beyond them `_MAX_RATIO` times its size. Images hardly shrink."""


@contextmanager
def open_tar(archive: Path) -> Iterator[TarStream]:
    """Open an archive, compressed with gzip or not.

    Raises:
        OSError: it can't be read.
    """
    with archive.open("rb") as file:
        size = archive.stat().st_size
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield TarStream(file, archive.name, size)
            return
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield TarStream(unpacked, archive.name, max(_MAX_SMALL, _MAX_RATIO * size))


class _File(Protocol):
    def read(self, size: int, /) -> bytes: ...


class TarStream:
    """An open archive, from `open_tar`."""

    def __init__(self, file: _File, where: str, limit: int) -> None:
        self._file, self._where, self._limit, self._position = file, where, limit, 0

    def members(self) -> Iterator[TarMember]:
        """All members but folders, in stored order. Raises DataPrepError as `tar_members`."""
        return streamed_members(self._read, self._where)

    def chunks(self, member: TarMember) -> Iterator[bytes]:
        """The content of the member that `members` has just given.

        Raises:
            DataPrepError: it is cut short, or the archive unpacks to too much.
        """
        position, end = member.offset, member.offset + member.size
        while position < end:
            chunk = self._read(position, min(_CHUNK, end - position))
            if not chunk:
                raise DataPrepError(f"{self._where} is cut short in {member.name[:200]}")
            position += len(chunk)
            yield chunk

    def _read(self, position: int, length: int) -> bytes:
        while self._position < position:
            if not self._next(min(_CHUNK, position - self._position)):
                return b""
        parts = []
        while length and (part := self._next(length)):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _next(self, length: int) -> bytes:
        try:
            part = self._file.read(length)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataPrepError(f"{self._where} is damaged: {error}") from None
        self._position += len(part)
        if self._position > self._limit:
            raise DataPrepError(
                f"{self._where} unpacks to more than {self._limit:,} bytes, which is too much for its size"
            )
        return part


_MAX_OPEN_FILES = 64
_MAX_BYTES = 1 << 30


def range_location(file: str, offset: int, size_or_problem: int | str) -> str:
    """`<file>:<offset>:<size in bytes>`, or `<file>:<offset>:<problem>` for what can't be used."""
    return f"{file}:{offset}:{size_or_problem}"


class ByteRanges:
    """Reads locations in files below `root`; a few files stay open.

    Args:
        root: the folder.
        problems: the reasons that locations may name instead of a size, in words.
    """

    def __init__(self, root: Path, problems: Mapping[str, str]) -> None:
        self._root = root
        self._problems = problems
        self._open: OrderedDict[str, FileIO] = OrderedDict()

    def read(self, location: str) -> bytes:
        """The bytes at a location.

        Raises:
            RejectedSample: the location names a problem, or more than 1 GiB.
            OSError: the file can't be read, or is shorter than when it was listed.
        """
        name, offset, size = location.rsplit(":", 2)
        if size in self._problems:
            raise RejectedSample(self._problems[size])
        length = int(size)
        if length > _MAX_BYTES:
            raise RejectedSample(
                f"its {length:,} bytes are more than an image can have here ({_MAX_BYTES:,})"
            )
        content = os.pread(self._file(name).fileno(), length, int(offset))
        if len(content) != length:
            raise OSError(f"{self._root / name} ends before byte {int(offset) + length:,}: it was changed")
        return content

    def _file(self, name: str) -> FileIO:
        file = self._open.pop(name, None) or (self._root / name).open("rb", buffering=0)
        self._open[name] = file
        if len(self._open) > _MAX_OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return file
