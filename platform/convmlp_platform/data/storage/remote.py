"""A split on remote storage, fetched block by block into a local cache.

The bytes of each block of a shard. A block is neighbouring samples that the sample order keeps together.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate
from typing import ParamSpec

import numpy as np

from convmlp_platform.data.storage.block_cache import KEPT_PREFIX, BlockCache, CachedPiece
from convmlp_platform.errors import DataError, data_error
from data_prep.dataset.index import ShardIndex, read_index
from data_prep.dataset.manifest import ShardInfo
from data_prep.errors import DataPrepError
from data_prep.storage.remote_files import read_file, read_range
from data_prep.storage.retry import Patience
from data_prep.storage.urls import join_url, shown


class BlockTable:
    """The blocks of one shard as byte ranges, from the first payload's start to the last one's end.

    Blocks are cut by global sample id (`id // block_size`), as the order permutes them; where one spans two shards,
    each holds a part of it.

    Args:
        index: the shard's index, payloads in sample order.
        first_sample: the split's id of the shard's first sample.
        block_size: samples of a block.
    """

    def __init__(self, index: ShardIndex, first_sample: int, block_size: int) -> None:
        ids = first_sample + np.arange(len(index))
        cuts = np.flatnonzero(np.diff(ids // block_size, prepend=-1))
        annotated = index.annotation_length > 0
        first = np.where(annotated, np.minimum(index.offset, index.annotation_offset), index.offset)
        ends = np.maximum(
            index.offset + index.length,
            np.where(annotated, index.annotation_offset + index.annotation_length, 0),
        )
        self._starts: list[int] = np.minimum.reduceat(first, cuts).tolist()
        self._ends: list[int] = np.maximum.reduceat(ends, cuts).tolist()
        self._first_block, self._block_size = first_sample // block_size, block_size

    def __len__(self) -> int:
        return len(self._starts)

    def of_sample(self, sample: int) -> tuple[int, int]:
        """Start and end of the block that holds this sample of the split."""
        number = sample // self._block_size - self._first_block
        return self._starts[number], self._ends[number]

    def holding(self, offset: int, length: int) -> tuple[int, int] | None:
        """Start and end of the block that holds these bytes; None where they aren't one block's."""
        number = bisect_right(self._starts, offset) - 1
        if number < 0 or offset + length > self._ends[number]:
            return None
        return self._starts[number], self._ends[number]


P = ParamSpec("P")

# Blocks a process keeps open. A window has 64 of each stream; opening one again costs about 10 µs.
OPEN_BLOCKS = 128
# Requests a process has under way for `ahead`; object stores answer in 20 to 100 ms, one after the other is slow.
FETCHING_THREADS = 8
# The longest time-out of one request: botocore's, 60 s for an answer.
_LONGEST_TRY_S = 60.0

Block = tuple[int, int, int]
"""Shard number, start and end in bytes."""


class RemoteStorage:
    """`Storage` over a URL. What is fetched and cached is a block, because the sample order reads whole blocks:
    a node that fetched whole shards would fetch the whole dataset.

    Cached pieces are named by their shard's SHA-256, so neither two datasets nor two preparations of one can mix.

    Args:
        url: the dataset's folder.
        shards: of one split and format, in order.
        cache: this node's.
        block_size: `SampleOrder.block`.
        patience: with the storage's transient errors.
    """

    def __init__(
        self,
        url: str,
        shards: Sequence[ShardInfo],
        cache: BlockCache,
        block_size: int = 64,
        patience: Patience | None = None,
    ) -> None:
        self.url, self.shards, self.cache = url, list(shards), cache
        self._block_size, self._patience = block_size, patience
        self._starts = [0, *accumulate(shard.num_samples for shard in self.shards)]
        self.index = lru_cache(maxsize=None)(self._read_index)
        self._table = lru_cache(maxsize=None)(self._read_table)
        self._known: set[int] = set()
        self._open: OrderedDict[Block, CachedPiece] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._renew()
        _storages.add(self)

    @property
    def patience_s(self) -> float:
        """For how long, in seconds, a read may wait while nothing is wrong but the storage: it may wait for another
        process that fetches the block and gives up, then try as long itself; the last try may take its time-out."""
        return 2 * (self._patience or Patience()).total + _LONGEST_TRY_S

    def read(self, number: int, offset: int, length: int) -> bytes:
        """`length` bytes of the shard at `offset`, by way of the cache if a block holds them."""
        place = self._table(number).holding(offset, length)
        if place is None:
            return self._fetch(number, offset, offset + length)
        block = (number, *place)
        content = self._piece(block).read(offset - place[0], length)
        if len(content) != length:
            self._forget(block)
            content = self._piece(block).read(offset - place[0], length)
        return content

    def discard(self, number: int, offset: int, length: int) -> bool:
        """Forget the cached block that holds these bytes; False if none does."""
        place = self._table(number).holding(offset, length)
        return place is not None and self._forget((number, *place))

    def ahead(self, samples: Iterable[int]) -> None:
        """Start to fetch the blocks of these samples that aren't there, and return at once."""
        for block in self.blocks(samples):
            with self._lock:
                if block in self._open or block in self._coming:
                    continue
            if self.cache.has(self._name(block)):
                continue
            with self._lock:
                self._coming.add(block)
            self._threads().submit(self._fetch_ahead, block)

    def blocks(self, samples: Iterable[int]) -> list[Block]:
        """The blocks of these samples of the split, each once, in the order of their first use."""
        places = [(bisect_right(self._starts, sample) - 1, sample) for sample in samples]
        unknown = {number for number, _ in places} - self._known
        if len(unknown) > 1:  # at a start a batch may need dozens of indexes: all at once
            list(self._threads().map(self._table, sorted(unknown)))
        self._known |= unknown
        return list(
            dict.fromkeys((number, *self._table(number).of_sample(sample)) for number, sample in places)
        )

    def ensure(self, block: Block) -> None:
        """Have the block in the cache, as one just used."""
        self._fetched(block)

    def _piece(self, block: Block) -> CachedPiece:
        with self._lock:
            piece = self._open.get(block)
            if piece is not None:
                self._open.move_to_end(block)
                return piece
        piece = self._fetched(block)
        with self._lock:
            self._open[block] = piece
            if len(self._open) > OPEN_BLOCKS:
                self._open.popitem(last=False)
        return piece

    def _fetched(self, block: Block) -> CachedPiece:
        number, start, end = block
        return self.cache.open_or_fetch(
            self._name(block), end - start, lambda: self._fetch(number, start, end)
        )

    def _forget(self, block: Block) -> bool:
        with self._lock:
            piece = self._open.pop(block, None)
        return self.cache.discard(self._name(block), piece)

    def _fetch(self, number: int, start: int, end: int) -> bytes:
        return _checked(read_range, join_url(self.url, self.shards[number].file), start, end, self._patience)

    def _fetch_ahead(self, block: Block) -> None:
        """Its errors are met again, and raised, by the read that needs the block."""
        try:
            self.ensure(block)
        except DataError:
            return
        finally:
            with self._lock:
                self._coming.discard(block)

    def _name(self, block: Block) -> str:
        number, start, end = block
        return f"{self.shards[number].sha256[:32]}-{start}-{end}"

    def _read_index(self, number: int) -> ShardIndex:
        """The shard's index, checked against the manifest's SHA-256 when it is first opened."""
        shard = self.shards[number]
        name, url = f"{KEPT_PREFIX}{shard.index_sha256[:32]}", join_url(self.url, shard.index)
        for _ in range(3):
            try:
                piece = self.cache.open_or_fetch(name, None, lambda: _checked(read_file, url, self._patience))
                content = piece.read(0, piece.size)
                if hashlib.sha256(content).hexdigest() == shard.index_sha256:
                    return read_index(self.cache.folder / name)
            except DataPrepError as error:
                if self.cache.has(name):  # else it was evicted before it was mapped
                    raise data_error(error) from error
            else:
                self.cache.discard(name, piece)
        raise DataError(
            f"{shown(url)}: its SHA-256 is not the manifest's: it was changed or is damaged; "
            "copy the dataset to its place again (`convmlp data copy`)"
        )

    def _read_table(self, number: int) -> BlockTable:
        return BlockTable(self.index(number), self._starts[number], self._block_size)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(FETCHING_THREADS, thread_name_prefix="fetch-ahead")
            return self._pool

    def _renew(self) -> None:
        """Locks and threads of this process: those of the one it was forked from are not usable."""
        self._lock = threading.Lock()
        self._coming: set[Block] = set()
        self._pool = None


def _checked(read: Callable[P, bytes], *args: P.args, **kwargs: P.kwargs) -> bytes:
    try:
        return read(*args, **kwargs)
    except DataPrepError as error:
        raise data_error(error) from error


_storages: weakref.WeakSet[RemoteStorage] = weakref.WeakSet()


def _renew_all() -> None:
    for storage in _storages:
        storage._renew()


os.register_at_fork(after_in_child=_renew_all)
