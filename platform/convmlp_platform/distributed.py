"""The place of this process among the workers, and the few collectives the platform needs outside the engines."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.constants import default_pg_timeout

from convmlp_platform.errors import ErrorRecord, recorded

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
                dist.init_process_group(backend, **_meeting_place(size))
        try:
            yield World(dist.get_rank(), local_rank, dist.get_world_size(), device)
        finally:
            if ours:
                dist.destroy_process_group()


def _meeting_place(size: int) -> dict[str, Any]:
    """Arguments of `init_process_group`: where the ranks meet, a store that rank 0 serves at MASTER_ADDR alone.

    Torch's own listens on every interface, and asks nobody who they are. Left to torch where torchrun serves the store,
    and where MASTER_ADDR isn't an address of rank 0's machine (a container behind NAT).
    """
    if dist.is_torchelastic_launched():
        return {}
    rank, host, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listening: dict[str, Any] = {}
    if rank == 0:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening["master_listen_fd"] = socket.create_server((host, port), family=family).detach()
        except OSError:
            return {}
    store = TCPStore(host, port, size, rank == 0, default_pg_timeout, **listening)
    return {"store": store, "rank": rank, "world_size": size}


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


def gathered(value: T) -> list[T]:
    """Every rank's `value`, in rank order (collective). The values cross as pickles between our own processes only."""
    values = [value] * dist.get_world_size()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def on_main(world: World, function: Callable[[], T]) -> T:
    """Run `function` on rank 0 alone; its result, or the exception it raised, on every rank.

    So a refusal (a full disk, a run of another recipe) ends all ranks at once, instead of leaving the others
    waiting for rank 0 in their next collective.
    """
    outcome: tuple[T | None, ErrorRecord | None] | None = None
    if world.is_main:
        try:
            outcome = (function(), None)
        except Exception as error:
            # Not the exception, which may not be picklable, and would lose what it was raised from.
            broadcast_object((None, recorded(error)))
            raise
    value, failure = broadcast_object(outcome)
    if failure is not None:
        raise failure.error()
    return value  # type: ignore[return-value]


def lost_peer(error: BaseException) -> bool:
    """Whether this process can't go on because another rank is gone: a collective failed, the ranks didn't meet.

    NCCL's and the store's errors have classes of their own. gloo's are plain RuntimeErrors: what raises those in
    `torch.distributed`'s own calls is a collective, whatever its text says.
    """
    if isinstance(error, dist.DistError):
        return True
    if type(error) is not RuntimeError:
        return False
    place = raised_in(error)
    return place == _COLLECTIVES or (place.startswith(_MIXED) and _said_by_gloo(error))


_COLLECTIVES = "torch.distributed.distributed_c10d"
# C++ code that computes as well as communicates is called from these: DDP's reducer (backward, its construction), and
# what FSDP2 and ZeRO 3 wait for. Otherwise FSDP2 and DeepSpeed call collectives from Python.
_MIXED = ("torch.autograd", "torch.nn.parallel.distributed", "torch.distributed", "deepspeed")


def raised_in(error: BaseException) -> str:
    """The module of the Python frame that an exception was raised in, or in a C function called from there."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place, trace = str(trace.tb_frame.f_globals.get("__name__", "")), trace.tb_next
    return place


def _said_by_gloo(error: RuntimeError) -> bool:
    """The one look at a text: in `backward` a bug and a broken connection are the same class from the same place, and
    DDP has no other sign. gloo begins each message with the place in its own source, which nothing else does."""
    return re.match(r"\[\S*third_party/gloo/\S+:\d+\] ", str(error)) is not None


# cudaError_t: device unavailable (46), no device (100), uncorrectable errors of its memory (214), of NVLink (220) or
# contained (226), hardware stack error (714), system not ready (802), unknown (999, a device that fell off the bus).
_DEVICE_FAULTS = frozenset({46, 100, 214, 220, 226, 714, 802, 999})


def device_failed(error: BaseException) -> bool:
    """Whether a GPU is broken, by CUDA's number of the error; an assertion or a bad address is a bug's."""
    return isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) in _DEVICE_FAULTS
