"""Who this process is among the workers, and the few collectives the platform needs outside the engines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place: `rank` of `size`, on `device`."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes what is written once: checkpoints, metrics, messages."""
        return self.rank == 0


def pick_device(use_gpu: bool, local_rank: int) -> torch.device:
    """The GPU of this local rank, or the CPU. Ray shows a worker only its own GPUs."""
    if not (use_gpu and torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@contextmanager
def joined_world(use_gpu: bool = True) -> Iterator[World]:
    """Join the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe (torchrun's and
    Ray Train's convention); a plain process becomes a world of one. A group that exists is used and left alone.
    """
    with _rank_variables():
        local_rank, size = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
        device = pick_device(use_gpu, local_rank)
        ours = not dist.is_initialized()
        if ours:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            if size == 1:
                dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
            else:
                dist.init_process_group(backend)
        try:
            yield World(dist.get_rank(), local_rank, dist.get_world_size(), device)
        finally:
            if ours:
                dist.destroy_process_group()


@contextmanager
def _rank_variables() -> Iterator[None]:
    """A plain process gets the variables of a world of one, which Accelerate and DeepSpeed ask for."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    missing = alone.keys() - os.environ.keys()
    os.environ.update({name: alone[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum over all ranks, in place; `values` lies on the rank's device."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def wait_for_all(world: World) -> None:
    """Return once every rank has got here (collective)."""
    sum_over_ranks(torch.zeros((), device=world.device)).item()


def broadcast_object(value: T | None) -> T:
    """Rank 0's `value` on every rank. The value crosses as a pickle between our own processes only."""
    box = [value]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def on_main(world: World, function: Callable[[], T]) -> T:
    """Run `function` on rank 0 alone; its result, or the exception it raised, on every rank.

    So a refusal (a full disk, a run of another recipe) ends all ranks at once, instead of leaving the others
    waiting for rank 0 in their next collective.
    """
    outcome: tuple[T | None, Exception | None] | None = None
    if world.is_main:
        try:
            outcome = (function(), None)
        except Exception as error:
            outcome = (None, error)
    value, failure = broadcast_object(outcome)
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]
