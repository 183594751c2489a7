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
from torch.utils.data import get_worker_info

from convmlp_platform.data.dataset.damage import Damage
from convmlp_platform.data.reading import process_name
from convmlp_platform.data.sample_order import Indices
from convmlp_platform.errors import ErrorRecord, recorded

Room = NDArray[Any]
"""Memory for a batch's pixels: (B, height, width, 3), uint8 or float32; or for images of different sizes (B, bytes)."""
ReadTargets = NDArray[Any] | list[NDArray[Any]] | list[dict[str, Any]]
"""By task: labels [B] int64; label maps [B, H, W], or [H, W] each, uint8; objects by name."""
Places = list[tuple[int, int, int]]
"""Of images of different sizes, by place in the batch: row of the room, height, width."""


class Lent(NamedTuple):
    """Images that lie in a pool: what readers send instead of pixels."""

    pool: int
    slot: int
    size: int


class ReadBatch(NamedTuple):
    """A micro-batch as a reader hands it on: images [B, 3, H, W] channels-last, or [3, H, W] each where their sizes
    differ (then `places` says where they lie), their targets, the rest [B]; and its damage."""

    images: Tensor | list[Tensor] | Lent
    targets: ReadTargets
    sample_ids: Indices
    epochs: Indices
    checksums: Indices
    replaced: NDArray[np.bool_]
    damages: tuple[Damage, ...]
    places: Places | None = None

    def tensors(self) -> Tensor | list[Tensor]:
        """The images, in the training process; lent memory is the tensors' while they or views of them live."""
        if not isinstance(self.images, Lent):
            return self.images
        whole = _pools[self.images.pool].lend(self.images.slot, self.images.size)
        return whole.permute(0, 3, 1, 2) if self.places is None else images_in_rows(whole, self.places)

    def pin_memory(self) -> ReadBatch:
        """A copy of the images in pinned memory; DataLoader's pinning thread calls this."""
        images = self.tensors()
        if isinstance(images, Tensor):
            return self._replace(images=images.pin_memory())
        return self._replace(images=[image.pin_memory() for image in images])


def images_in_rows(rows: Tensor, places: Places) -> list[Tensor]:
    """Of rows [B, bytes], the images at the start of each: views [3, height, width], interleaved in memory."""
    return [
        rows[row, : 3 * height * width].view(height, width, 3).permute(2, 0, 1)
        for row, height, width in places
    ]


class Refused(NamedTuple):
    """Instead of a micro-batch: the error that the training process is to raise."""

    record: ErrorRecord


class Reader(Protocol):
    """Reads micro-batches by place."""

    @property
    def room(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of what the largest batch's pixels need."""
        ...

    def read(self, place: Any, room: Room | None) -> ReadBatch:
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
        """The first `size` entries of a taken slot, as they lie there."""
        pixels = self.array(slot)[:size]
        # torch keeps this very object until the storage's last user is gone.
        weakref.finalize(pixels, self._free.append, slot).atexit = False
        return torch.from_numpy(pixels)


@dataclass(frozen=True)
class PooledReader:
    """The dataset of a DataLoader: reads (place, slot) into that slot of the pool."""

    reader: Reader
    pool: BatchPool | None

    def __getitem__(self, asked: tuple[Any, int | None]) -> ReadBatch | Refused:
        try:
            return self._read(*asked)
        except Exception as error:
            # torch would hand on the class and a text: no errno, no cause.
            if get_worker_info() is None:
                raise
            return Refused(recorded(error))
        finally:
            process_name.idle()

    def _read(self, place: Any, slot: int | None) -> ReadBatch:
        if self.pool is None or slot is None:
            return self.reader.read(place, None)
        read = self.reader.read(place, self.pool.array(slot))
        return read._replace(images=Lent(self.pool.number, slot, len(read.sample_ids)))


@dataclass(frozen=True)
class PooledPlaces:
    """The sampler of a DataLoader: gives each place a free slot, when a reader is asked for it."""

    places: Iterable[Any]
    pool: BatchPool | None

    def __iter__(self) -> Iterator[tuple[Any, int | None]]:
        return ((place, self.pool.take() if self.pool else None) for place in self.places)
