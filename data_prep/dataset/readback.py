"""A shard file read once from its start to its end: its SHA-256, and whether every payload is what its index says."""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO, NamedTuple

import xxhash

from data_prep.dataset.index import ShardIndex

_CHUNK_BYTES = 1 << 18
"""Small enough for the processor's cache, so that the second hash finds it there."""


class ReadBack(NamedTuple):
    """The content of a shard file: its SHA-256, the number of samples whose checksums were computed, and a line for
    each image or annotation whose bytes are not those of the index."""

    sha256: str
    num_payloads: int
    damaged: list[str]


def read_back(file: BinaryIO, index: ShardIndex | None) -> ReadBack:
    """Hash a shard file and all payloads that `index` lists, in one pass with bounded memory.

    Args:
        file: the shard, open for reading; its position is left alone.
        index: its samples, in any order; none are checked without it.

    Raises:
        OSError: the file can't be read.
    """
    content = _HashedFile(file)
    damaged = []
    for payload in _payloads(index) if index is not None else []:
        if payload.length < 0 or payload.offset + payload.length > content.size:
            damaged.append(f"{payload} lies outside the file")
        elif payload.offset < content.position:
            damaged.append(f"{payload} overlaps another one")
        else:
            content.read_to(payload.offset)
            checksum = xxhash.xxh3_64()
            content.read_to(payload.offset + payload.length, checksum)
            if checksum.intdigest() != payload.checksum:
                damaged.append(f"{payload} is damaged")
    content.read_to(content.size)
    return ReadBack(content.sha256.hexdigest(), 0 if index is None else len(index), damaged)


class _Payload(NamedTuple):
    offset: int
    length: int
    checksum: int
    row: int
    kind: str
    samples: ShardIndex

    def __str__(self) -> str:
        return f"{self.kind} {self.samples.key(self.row)} ({self.length} bytes at {self.offset})"


def _payloads(index: ShardIndex) -> list[_Payload]:
    """All images and annotations in the order of the file."""
    images = (index.offset, index.length, index.checksum)
    annotations = (index.annotation_offset, index.annotation_length, index.annotation_checksum)
    listed = [
        _Payload(offset, length, checksum, row, kind, index)
        for kind, columns in (("sample", images), ("the annotation of", annotations))
        for row, (offset, length, checksum) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
        if length or kind == "sample"
    ]
    return sorted(listed, key=lambda payload: payload.offset)


class _HashedFile:
    """Reads onwards, adding all it reads to a SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self.size = os.fstat(self._descriptor).st_size
        self.position = 0
        self.sha256 = hashlib.sha256()

    def read_to(self, end: int, checksum: xxhash.xxh3_64 | None = None) -> None:
        """Read the bytes up to `end`, adding them to `checksum`, too."""
        while self.position < end:
            chunk = self._buffer[: end - self.position]
            count = os.preadv(self._descriptor, [chunk], self.position)
            if count == 0:
                raise OSError(f"it became shorter while it was read, it has {self.position} bytes")
            self.sha256.update(chunk[:count])
            if checksum is not None:
                checksum.update(chunk[:count])
            self.position += count
