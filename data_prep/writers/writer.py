"""The interface of a shard writer: it takes stored samples one by one, in order, and says where each one lies."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple, Protocol

from data_prep.dataset.manifest import Task
from data_prep.images.check_image import StoredImage


class WrittenPayload(NamedTuple):
    """One stored sample: its image's bytes, where they start in the shard, their `encoding` in the index, and
    where its annotation starts (0 without one). Formats store the annotation's bytes as they are given."""

    offset: int
    content: bytes
    encoding: int
    annotation_offset: int = 0


class ShardWriter(Protocol):
    """Writes one shard into an open binary file; the same samples give the same bytes."""

    suffix: str

    def __init__(self, file: BinaryIO, capacity: int, task: Task = "classification") -> None:
        """`capacity` is an upper bound of the number of samples."""

    def add(
        self, key: str, label: int, image: StoredImage, annotation: bytes | None = None
    ) -> WrittenPayload:
        """Append one sample; the annotation is given for every task but classification."""
        ...

    def finish(self) -> str | None:
        """Write what belongs behind the last sample; the caller makes the file durable.

        Returns the file's SHA-256, where it was written from start to end; None where it must be read for that.
        """
        ...
