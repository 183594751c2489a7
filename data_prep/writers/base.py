"""What a shard writer does: takes stored images one by one, in order, and says where each one lies."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple, Protocol

from data_prep.images import StoredImage


class Payload(NamedTuple):
    """One stored payload: its bytes, where they start in the shard, and their `encoding` in the index."""

    offset: int
    content: bytes
    encoding: int


class ShardWriter(Protocol):
    """Writes one shard into an open binary file; the same images give the same bytes."""

    suffix: str

    def __init__(self, file: BinaryIO, capacity: int) -> None:
        """`capacity` is an upper bound of the number of images."""

    def add(self, key: str, label: int, image: StoredImage) -> Payload:
        """Append one sample."""
        ...

    def finish(self) -> None:
        """Write what belongs behind the last sample; the caller makes the file durable."""
        ...
