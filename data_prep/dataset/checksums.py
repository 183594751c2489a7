"""Hashes that say what a dataset is, per sample and for the whole of it, and a shard file read back against them.

The dataset digest covers classes and, split by split in stored order, every sample's key, label and source
content: that of the image and, where the task has them, of its annotation. It depends neither on the format,
nor on where shards are cut, nor on the machine.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.dataset.index import ShardIndex

_SCHEMA_TAG = b"convmlp-dataset-1"


def content_hash(content: bytes) -> bytes:
    """XXH3-128 of an original image file, 16 bytes."""
    return xxhash.xxh3_128_digest(content)


def pixel_hash(pixels: NDArray[np.uint8]) -> bytes:
    """XXH3-128 of a source's raw pixels, shape (height, width) or (height, width, 3), 16 bytes."""
    shape = struct.pack("<3I", *pixels.shape, *[1] * (3 - pixels.ndim))
    return xxhash.xxh3_128_digest(shape + np.ascontiguousarray(pixels).tobytes())


def annotated_hash(image_hash: bytes, annotation: bytes) -> bytes:
    """Hash of an image with its annotation, 16 bytes: XXH3-128 of the image's hash and the annotation's."""
    return xxhash.xxh3_128_digest(image_hash + xxhash.xxh3_128_digest(annotation))


def payload_checksum(payload: bytes | memoryview) -> int:
    """XXH3-64 of a sample's bytes as stored."""
    return xxhash.xxh3_64_intdigest(payload)


def order_key(seed: int, key: str) -> bytes:
    """Sort key of a sample: a keyed BLAKE2b of its name, so that order is a pure function of (seed, names).

    No random generator is involved whose stream could change between numpy releases.
    """
    return hashlib.blake2b(key.encode(), digest_size=16, key=seed.to_bytes(8, "little")).digest()


def dataset_digest(
    classes: Sequence[str], splits: Mapping[str, Iterable[ShardIndex]], *, num_turned: int = 0
) -> str:
    """`sha256:...` over classes and all samples.

    Args:
        classes: class names, by label.
        splits: for each split, the indexes of its shards in order (of any one format).
        num_turned: images that are turned upright. The same files taken as they are stored are another dataset.
    """
    digest = hashlib.sha256(_SCHEMA_TAG)
    digest.update(struct.pack("<Q", len(classes)))
    for name in classes:
        digest.update(_text(name))
    for split in sorted(splits):
        digest.update(_text(split))
        count = 0
        for index in splits[split]:
            labels = index.label.tolist()
            hashes = index.source_hash.tobytes()
            for i, (key, label) in enumerate(zip(index.keys.to_pylist(), labels, strict=True)):
                digest.update(_text(key) + struct.pack("<i", label) + hashes[16 * i : 16 * (i + 1)])
            count += len(index)
        digest.update(struct.pack("<Q", count))
    if num_turned:
        digest.update(_text("turned upright") + struct.pack("<Q", num_turned))
    return f"sha256:{digest.hexdigest()}"


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<I", len(encoded)) + encoded


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
