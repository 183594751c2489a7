"""Random access to samples that lie inside big files, such as tars that are never unpacked."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from data_prep.errors import RejectedSample

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
