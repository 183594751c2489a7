"""Batches for one rank, by torch's DataLoader: training micro-batches in the sample order, and held-out images.

Nothing here keeps state: where the order stands is the step, so a resume at any step costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convmlp_platform.data.assignment import share_of
from convmlp_platform.data.order import SampleOrder
from convmlp_platform.data.permutation import derive_key
from convmlp_platform.data.split import ShardedSplit

# What torch collates a list of (image, label, sample id) to.
Collated = tuple[Tensor, Tensor, Tensor]
ImageTransform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass computes: images [B, 3, H, W] float32, labels [B] int64, sample ids [B] int64.

    `number` is its place in the step, the same on any world size. A ghost is computed with weight 0.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    number: int
    ghost: bool = False


def _micro_batch(batch: Collated, number: int, ghost: bool = False) -> MicroBatch:
    images, labels, sample_ids = batch
    return MicroBatch(images, labels, sample_ids, number, ghost)


class _Augmented(Dataset[tuple[Tensor, int, int]]):
    """Samples by (epoch, sample id); the augmentation's randomness is keyed by (seed, epoch, sample id)."""

    def __init__(self, split: ShardedSplit, transform: ImageTransform, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int, int]:
        epoch, sample = place
        key = derive_key(self.seed, "augment", epoch, sample)
        random.seed(key)
        np.random.seed(key & 0xFFFFFFFF)  # timm's transforms draw from numpy's global generator
        torch.default_generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)
        image, label = self.split.image(sample)
        return self.transform(image), label, sample


@dataclass(frozen=True)
class _Places:
    """The batch sampler: for each micro-batch of this rank, its (epoch, sample id) pairs."""

    order: SampleOrder
    steps: range
    global_batch_size: int
    micro_batch_size: int
    numbers: tuple[int, ...]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size = self.micro_batch_size
        for step in self.steps:
            for number in self.numbers:
                epochs, samples = self.order.step_samples(step, self.global_batch_size, number * size, size)
                yield list(zip(epochs.tolist(), samples.tolist(), strict=True))


@dataclass(frozen=True)
class TrainLoader:
    """The training micro-batches of one rank.

    `num_workers` reader processes run through the ends of epochs, so no epoch starts with an empty queue.
    """

    split: ShardedSplit
    transform: ImageTransform
    order: SampleOrder
    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int
    num_workers: int
    pin_memory: bool = False

    def steps(self, start: int, stop: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of this rank for each step in start..stop-1 (steps are counted from 0)."""
        share = share_of(self.rank, self.world_size, self.global_batch_size // self.micro_batch_size)
        real = share.numbers[: share.real]
        places = _Places(self.order, range(start, stop), self.global_batch_size, self.micro_batch_size, real)
        dataset = _Augmented(self.split, self.transform, self.order.seed)
        batches = iter(_data_loader(dataset, places, self.num_workers, self.pin_memory))
        for _ in range(start, stop):
            micro_batches = [_micro_batch(next(batches), number) for number in real]
            last = micro_batches[-1]
            ghosts = len(share.numbers) - share.real
            yield (
                micro_batches
                + [MicroBatch(last.images, last.labels, last.sample_ids, last.number, True)] * ghosts
            )


class _Plain(Dataset[tuple[Tensor, int, int]]):
    """Samples by id, without randomness."""

    def __init__(self, split: ShardedSplit, transform: ImageTransform) -> None:
        self.split, self.transform = split, transform

    def __getitem__(self, sample: int) -> tuple[Tensor, int, int]:
        image, label = self.split.image(sample)
        return self.transform(image), label, sample


@dataclass(frozen=True)
class EvalLoader:
    """A rank's part of the held-out images: each exactly once over all ranks.

    Every rank yields the same number of batches; where a rank has none left, a ghost repeats its first.
    """

    split: ShardedSplit
    transform: ImageTransform
    batch_size: int
    rank: int
    world_size: int
    num_workers: int

    def __iter__(self) -> Iterator[MicroBatch]:
        samples = range(len(self.split))
        batches = [samples[at : at + self.batch_size] for at in range(0, len(samples), self.batch_size)]
        rounds = -(-len(batches) // self.world_size)
        mine = batches[self.rank :: self.world_size]
        padded = mine + (mine or batches)[:1] * (rounds - len(mine))
        loader = _data_loader(_Plain(self.split, self.transform), padded, self.num_workers, False)
        for number, batch in enumerate(loader):
            yield _micro_batch(batch, number, ghost=number >= len(mine))


def _data_loader(
    dataset: Dataset[tuple[Tensor, int, int]], batch_sampler: object, num_workers: int, pin_memory: bool
) -> Iterable[Collated]:
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,  # type: ignore[arg-type]
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if num_workers else None,
        multiprocessing_context="fork" if num_workers else None,
    )


def _one_thread(_worker: int) -> None:
    """Readers are many: one thread each."""
    torch.set_num_threads(1)
