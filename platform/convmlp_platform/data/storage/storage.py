"""Storage of a split's shards: the operations that reading needs of a folder or of remote storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from convmlp_platform.errors import StorageUnreachable
from data_prep.dataset.index import ShardIndex

__all__ = ["Storage", "StorageUnreachable"]


class Storage(Protocol):
    """The shards of one split in one format, by number. Forked reader processes may share one object.

    Raises (all methods): DataError naming the file and what to do; StorageUnreachable where the storage is away.
    """

    def index(self, number: int) -> ShardIndex:
        """The shard's index, checked against the manifest's SHA-256 when it is first opened."""
        ...

    def read(self, number: int, offset: int, length: int) -> bytes | memoryview:
        """`length` bytes of the shard at `offset`; the caller checks them."""
        ...

    def discard(self, number: int, offset: int, length: int) -> bool:
        """Forget any copy of these bytes, so that the next `read` fetches them anew; False if there is none."""
        ...

    def ahead(self, samples: Iterable[int]) -> None:
        """A hint that these samples of the split will soon be read."""
        ...
