"""A micro-batch's memory: shared by readers and the training process, and used again once nobody looks at it.

Handing every batch over in new shared memory (as torch's DataLoader does) costs more than checking it: the kernel
must clear and map 37 pages for each image of 224 px, once in the reader and once in the training process.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmlp_platform.data.damage import Damage
from convmlp_platform.data.permutation import Indices

Room = NDArray[Any]
"""Where a batch's pixels go: (B, height, width, 3), uint8 or float32."""


class Lent(NamedTuple):
    """Images that lie in a pool: what readers send instead of pixels."""

    pool: int
    slot: int
    size: int


class ReadBatch(NamedTuple):
    """A micro-batch as a reader hands it on: images [B, 3, H, W] channels-last, the rest [B]; and its damage."""

    images: Tensor | Lent
    labels: Indices
    sample_ids: Indices
    epochs: Indices
    checksums: Indices
    replaced: NDArray[np.bool_]
    damages: tuple[Damage, ...]

    def tensor(self) -> Tensor:
        """The images, in the training process; lent memory is the tensor's while it or a view of it lives."""
        if isinstance(self.images, Tensor):
            return self.images
        return _pools[self.images.pool].lend(self.images.slot, self.images.size)

    def pin_memory(self) -> ReadBatch:
        """A copy in pinned memory; DataLoader's pinning thread calls this."""
        return self._replace(images=self.tensor().pin_memory())


class Refused(NamedTuple):
    """Instead of a micro-batch: the message of the error that the training process is to raise."""

    message: str


class Reader(Protocol):
    """Reads micro-batches by place."""

    @property
    def room(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape (B, height, width, 3) and dtype of the largest batch."""
        ...

    def read(self, place: Any, room: Room | None) -> ReadBatch | Refused:
        """The batch of a place, its pixels in `room`'s first entries or, where it is None, in memory of their own."""
        ...


_numbers = count()
_pools: weakref.WeakValueDictionary[int, BatchPool] = weakref.WeakValueDictionary()


class BatchPool:
    """Room for `slots` batches in memory that forked processes share. Only the process that made it takes and lends.

    A slot is free again when the tensor that was lent, and every view of it, is gone. Pages count only once they
    are touched, and the last freed slot is taken first, so a pool is as large as what was in use at one time. It
    doesn't lie in /dev/shm, which containers commonly limit to 64 MB.
    """

    def __init__(self, slots: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.number = next(_numbers)
        _pools[self.number] = self
        self._shape, self._dtype = shape, dtype
        self._memory = [mmap.mmap(-1, max(1, prod(shape) * dtype.itemsize)) for _ in range(slots)]
        self._free = list(range(slots))

    def take(self) -> int | None:
        """A slot for a reader to fill, or None if all are in use."""
        return self._free.pop() if self._free else None

    def array(self, slot: int) -> Room:
        """The slot's memory, in any process."""
        return np.frombuffer(self._memory[slot], self._dtype).reshape(self._shape)

    def lend(self, slot: int, size: int) -> Tensor:
        """The first `size` images of a taken slot, [size, 3, height, width] channels-last."""
        pixels = self.array(slot)[:size]
        # torch keeps this very object until the storage's last user is gone.
        weakref.finalize(pixels, self._free.append, slot).atexit = False
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class PooledReader:
    """The dataset of a DataLoader: reads (place, slot) into that slot of the pool."""

    reader: Reader
    pool: BatchPool | None

    def __getitem__(self, asked: tuple[Any, int | None]) -> ReadBatch | Refused:
        place, slot = asked
        if self.pool is None or slot is None:
            return self.reader.read(place, None)
        read = self.reader.read(place, self.pool.array(slot))
        if isinstance(read, Refused):
            return read
        return read._replace(images=Lent(self.pool.number, slot, len(read.labels)))


@dataclass(frozen=True)
class PooledPlaces:
    """The sampler of a DataLoader: gives each place a free slot, when a reader is asked for it."""

    places: Iterable[Any]
    pool: BatchPool | None

    def __iter__(self) -> Iterator[tuple[Any, int | None]]:
        return ((place, self.pool.take() if self.pool else None) for place in self.places)


def empty_batch(
    samples: Indices, epochs: Indices, size: int, dtype: np.dtype[Any], room: Room | None
) -> tuple[ReadBatch, Room]:
    """A batch whose pixels are still to be written, and these as (B, size, size, 3)."""
    pixels = np.empty((len(samples), size, size, 3), dtype) if room is None else room[: len(samples)]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    labels, checksums = np.zeros(len(samples), np.int64), np.zeros(len(samples), np.int64)
    replaced = np.zeros(len(samples), np.bool_)
    return ReadBatch(images, labels, samples, epochs, checksums, replaced, ()), pixels
