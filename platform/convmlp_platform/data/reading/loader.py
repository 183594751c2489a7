"""Batches for one rank, by torch's DataLoader: training micro-batches in the sample order, and held-out images.

Nothing here keeps state: where the order stands is the step, so a resume at any step costs nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from convmlp_platform.data.dataset.damage import Quarantine
from convmlp_platform.data.dataset.split import ShardedSplit
from convmlp_platform.data.reading import process_name
from convmlp_platform.data.reading.batch_memory import (
    BatchPool,
    PooledPlaces,
    PooledReader,
    ReadBatch,
    Refused,
)
from convmlp_platform.data.reading.reader import EvalReader, OpenSplit, SampleSource, TrainReader
from convmlp_platform.data.sample_order import Indices, SampleOrder, share_of
from convmlp_platform.data.storage.read_ahead import ReadAhead
from convmlp_platform.data.storage.remote import RemoteStorage
from convmlp_platform.distributed import raised_in
from convmlp_platform.torch_internals import READER_DIED_IN

# Micro-batches that each reader has ready or under way; and, of those that a step holds at a time, how many are
# given memory of the pool: more than that are copied.
_PREFETCH = 4
_MOST_HELD = 32


Targets = Tensor | list[Tensor] | list[dict[str, Any]]


@dataclass(frozen=True)
class MicroBatch:
    """The samples that one forward pass computes.

    Args:
        images: [B, 3, H, W], channels-last, or a list of [3, H, W] where their sizes differ; uint8 pixels (the engine
            normalises them on its device) or normalised float32.
        targets: by task. Classification: labels [B] int64. Segmentation: label maps uint8, [B, H, W], or [H, W] each
            of whole images. Detection: a dictionary each (`data.reading.task_reading`).
        sample_ids, epochs: [B] int64, those of the sample order, also where another sample took a place.
        checksums: [B] int64, the bits of the XXH3-64 of the payload that was read; 0 where `replaced`.
        replaced: [B] bool, the places of damaged samples, taken by other samples of the same micro-batch.
        number: place in the step, the same on any world size.
        ghost: computed with weight 0.
    """

    images: Tensor | list[Tensor]
    targets: Targets
    sample_ids: Tensor
    epochs: Tensor
    checksums: Tensor
    replaced: Tensor
    number: int
    ghost: bool = False

    @property
    def labels(self) -> Tensor:
        """Of classification: its targets."""
        assert isinstance(self.targets, Tensor)
        return self.targets


def as_micro_batch(read: ReadBatch, number: int, ghost: bool = False) -> MicroBatch:
    """Returns the batch that a reader read, as tensors."""
    rest = (read.sample_ids, read.epochs, read.checksums, read.replaced)
    sample_ids, epochs, checksums, replaced = map(torch.from_numpy, rest)
    targets = _as_tensors(read.targets)
    return MicroBatch(read.tensors(), targets, sample_ids, epochs, checksums, replaced, number, ghost)


def _as_tensors(targets: Any) -> Any:
    """With tensors for arrays, also those in lists and dictionaries; `objects` are JSON, and stay as they are."""
    if isinstance(targets, np.ndarray):
        return torch.from_numpy(targets)
    if isinstance(targets, list):
        return [_as_tensors(target) for target in targets]
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in targets.items()
    }


@dataclass(frozen=True)
class TrainLoader:
    """The training micro-batches of one rank.

    `num_workers` reader processes run through the ends of epochs, so no epoch starts with an empty queue.

    Args:
        transform: of the task of the split's dataset (`data.reading.reader.task_reading`).
        quarantine: who takes note of damaged samples and trains on without them; None fails on the first.
        twin: opens the split in the dataset's other format, from which damaged samples are then read.
        read_ahead: fetches from remote storage what this rank will read.
    """

    split: ShardedSplit
    transform: Any
    order: SampleOrder
    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int
    num_workers: int
    pin_memory: bool = False
    quarantine: Quarantine | None = None
    twin: OpenSplit | None = None
    read_ahead: ReadAhead | None = None

    def steps(self, start: int, stop: int) -> Generator[list[MicroBatch], None, None]:
        """The micro-batches of this rank for each step in start..stop-1 (steps are counted from 0).

        Raises:
            DataError: a sample is damaged and there is no quarantine, or it is full.
        """
        share = share_of(self.rank, self.world_size, self.global_batch_size // self.micro_batch_size)
        numbers = share.numbers[: share.real]
        ghosts = len(share.numbers) - share.real
        reader = TrainReader(
            SampleSource(self.split, self.twin if self.quarantine else None),
            self.transform,
            self.order,
            self.global_batch_size,
            self.micro_batch_size,
            quarantine=self.quarantine is not None,
        )
        places = _Places(start, stop, numbers)
        with self.read_ahead.running(start, stop) if self.read_ahead else nullcontext() as progress:
            held = len(share.numbers)
            batches = _read(reader, places, self.num_workers, self.pin_memory, self.quarantine, held)
            for step in range(start, stop):
                if progress is not None:
                    progress.reached(step)
                micro_batches = [as_micro_batch(next(batches), number) for number in numbers]
                yield micro_batches + [replace(micro_batches[-1], ghost=True)] * ghosts

    @property
    def patience_s(self) -> float:
        """How much longer than usual, in seconds, a step's data may take with nothing wrong but a remote storage."""
        storage = self.split.storage
        return storage.patience_s if isinstance(storage, RemoteStorage) else 0.0

    @cached_property
    def _first_shards(self) -> FirstShards:
        share = share_of(self.rank, self.world_size, self.global_batch_size // self.micro_batch_size)
        places = tuple(number * self.micro_batch_size for number in share.numbers[: share.real])
        return FirstShards(self.split, self.order, self.global_batch_size, places)

    def pending(self, step: int) -> str:
        """The shards of the first sample of each micro-batch of this rank in a step: `train-000017.tar, ...`.

        What to say of a rank that waits for its data. For steps in a row, a few microseconds a micro-batch.
        """
        return self._first_shards.of_step(step)


@dataclass(frozen=True)
class _Places:
    """The (step, number) of every micro-batch of a rank: what readers need to know, as they are asked for it."""

    start: int
    stop: int
    numbers: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, number) for step in range(self.start, self.stop) for number in self.numbers)

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.numbers)


# Steps computed at once. For one place of the order alone it takes 0.9 ms, for 256 steps 5 µs each, for 1,024 2.5 µs.
_STEPS = 1024


class FirstShards:
    """Names of shards by step, computed for many steps at a time.

    Args:
        places: within the global batch, those whose samples' shards are named.
    """

    def __init__(
        self, split: ShardedSplit, order: SampleOrder, global_batch_size: int, places: Sequence[int]
    ) -> None:
        self._order, self._places = order, places
        self._per_stream = global_batch_size // order.num_streams
        self._names = [PurePosixPath(shard.file).name for shard in split.shards]
        self._past = np.cumsum([shard.num_samples for shard in split.shards])
        self._known: dict[int, str] = {}

    def of_step(self, step: int) -> str:
        """The names for a step (counted from 0), each once, in the order of the places."""
        if step not in self._known:
            self._known = self._computed(np.arange(step, step + _STEPS))
        return self._known[step]

    def _computed(self, steps: Indices) -> dict[int, str]:
        samples = [self._samples(place, steps) for place in self._places]
        shards = np.searchsorted(self._past, np.stack(samples, axis=1), side="right")
        return {
            step: ", ".join(dict.fromkeys(self._names[number] for number in numbers))
            for step, numbers in zip(steps.tolist(), shards.tolist(), strict=True)
        }

    def _samples(self, place: int, steps: Indices) -> Indices:
        stream, offset = divmod(place, self._per_stream)
        return self._order.samples_at(stream, steps * self._per_stream + offset)[1]


@dataclass(frozen=True)
class EvalLoader:
    """A rank's part of the held-out images: each exactly once over all ranks.

    Every rank yields the same number of batches; where a rank has none left, a ghost repeats its first.

    Args:
        transform: as in `TrainLoader`.
        quarantine, twin: as there, but a damaged image that the twin doesn't have fails in any case.
    """

    split: ShardedSplit
    transform: Any
    batch_size: int
    rank: int
    world_size: int
    num_workers: int
    quarantine: Quarantine | None = None
    twin: OpenSplit | None = None

    def __iter__(self) -> Iterator[MicroBatch]:
        samples = range(len(self.split))
        batches = [samples[at : at + self.batch_size] for at in range(0, len(samples), self.batch_size)]
        rounds = -(-len(batches) // self.world_size)
        # Runs, not every n-th batch: of remote storage a rank fetches whole blocks, and no others.
        first, past = (len(batches) * rank // self.world_size for rank in (self.rank, self.rank + 1))
        mine = batches[first:past]
        padded = mine + (mine or batches)[:1] * (rounds - len(mine))
        source = SampleSource(self.split, self.twin if self.quarantine else None)
        reader = EvalReader(source, self.transform, self.batch_size)
        for number, read in enumerate(_read(reader, padded, self.num_workers, False, self.quarantine)):
            yield as_micro_batch(read, number, ghost=number >= len(mine))


def _read(
    reader: TrainReader | EvalReader,
    places: Iterable[object],
    num_workers: int,
    pin_memory: bool,
    quarantine: Quarantine | None,
    held: int = 1,
) -> Iterator[ReadBatch]:
    """Yields the batch that the reader makes of each place, in order; `held` batches are in use at a time."""
    pool = None
    if num_workers:
        pool = BatchPool(_PREFETCH * num_workers + min(held, _MOST_HELD) + 2, *reader.room)
    loader: Iterable[ReadBatch | Refused] = DataLoader(
        PooledReader(reader, pool),  # type: ignore[arg-type]
        batch_size=None,
        sampler=PooledPlaces(places, pool),
        collate_fn=_as_read,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_begin_reader,
        prefetch_factor=_PREFETCH if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
    )
    for read in loader:
        if isinstance(read, Refused):
            raise read.record.error()
        if quarantine is not None and read.damages:
            quarantine.add(read.damages)
        yield read


def reader_died(error: BaseException) -> bool:
    """Whether a reader process was killed, or left without a word, which torch tells as a plain RuntimeError: from the
    handler of its death, or where its batch is waited for."""
    return type(error) is RuntimeError and raised_in(error) in READER_DIED_IN


def _as_read(read: Any) -> Any:
    """A batch comes whole: nothing is to be collated."""
    return read


def _begin_reader(_worker: int) -> None:
    """Readers are many: one thread each."""
    process_name.become_reader()
    torch.set_num_threads(1)
