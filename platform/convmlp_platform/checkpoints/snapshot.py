"""A run's tensors as they are at one instant, in host memory that is used again for every save.

The memory is the data part of the files to be, so there is one copy. First touch of fresh memory costs more than
the copy (513 MB on two cores: 0.8 s fresh, 0.04 s again), hence the reuse. Weights and optimizer state stand still
until the next optimizer update, so that forward and backward passes hide the copy (as in DataStates-LLM, Maurya et
al. 2024, arXiv 2406.10707).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from convmlp_platform.checkpoints.layout import Part, tensor_file_name
from convmlp_platform.checkpoints.stores.store import CHUNK_BYTES, Chunks
from convmlp_platform.checkpoints.tensor_file import FilePlan, TensorSlice, plan_file

Groups = Mapping[str, Mapping[str, Tensor]]
Slices = Mapping[str, Mapping[str, TensorSlice]]
Pair = tuple[Tensor, Tensor]
"""A tensor, and the bytes it is copied to."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MAX_COPY_THREADS = 4


class Snapshots:
    """Takes one snapshot at a time: a new one overwrites the last.

    Tensors on the CPU are copied by threads (numpy's copy: it releases the interpreter, and unlike torch's it never
    waits for OpenMP's team). Those on a GPU go to pinned memory on a stream of their own.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._plans: dict[str, FilePlan] = {}
        self._memory: dict[str, Tensor] = {}
        self._copying: list[Future[None]] = []
        self._copied: torch.cuda.Event | None = None
        self._threads = min(_MAX_COPY_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="snapshot")

    def reserve(self, groups: Groups, slices: Slices) -> None:
        """Have memory for such a state, and touch all of it. Called again for the same, it does nothing."""
        for group, tensors in groups.items():
            plan = plan_file(tensors, slices.get(group, {}))
            self._plans[group] = plan
            pinned = any(tensor.is_cuda for tensor in tensors.values())
            held = self._memory.get(group)
            if held is None or held.numel() != plan.data_bytes or held.is_pinned() != pinned:
                self._memory.pop(group, None)
                self._memory[group] = _fresh_memory(plan.data_bytes, pinned)

    def take(
        self, groups: Groups, slices: Slices, changing: Container[str] | None = None
    ) -> dict[str, Chunks]:
        """Copy the tensors; the files' names and what they hold, valid until the next call.

        With `changing`, only tensors of these names are copied at once; the others, which must stay as they are until
        `settle`, meanwhile.
        """
        self.reserve(groups, slices)
        at_once: list[Pair] = []
        later: list[Pair] = []
        on_gpu: list[Pair] = []
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                if tensor.numel():
                    pair = tensor, self._memory[group][slice(*self._plans[group].places[name])]
                    postponed = later if changing is not None and name not in changing else at_once
                    (on_gpu if tensor.is_cuda else postponed).append(pair)
        self._copied = _copy_from_gpu(on_gpu)
        self._copy_now(at_once)
        # The largest first; a thread takes the next one that is left.
        left = iter(sorted(later, key=lambda pair: pair[0].numel(), reverse=True))
        self._copying = [self._pool.submit(_copy_all, left) for _ in range(self._threads if later else 0)]
        if changing is None:
            self.settle()
        return {tensor_file_name(group, self._part): self._content(group) for group in groups}

    def settle(self) -> None:
        """Return when the tensors may change (those on a GPU: by kernels queued from now on)."""
        for thread in self._copying:
            thread.result()
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def size(self, groups: Groups) -> int:
        """Bytes of the files of the snapshot taken last."""
        return sum(len(self._plans[group].header) + self._plans[group].data_bytes for group in groups)

    def _content(self, group: str) -> Chunks:
        plan, memory = self._plans[group], self._memory[group].numpy().data
        copying, copied = self._copying, self._copied

        def chunks() -> Iterator[memoryview | bytes]:
            for thread in copying:
                thread.result()
            if copied is not None:
                copied.synchronize()
            yield plan.header
            for start in range(0, plan.data_bytes, CHUNK_BYTES):
                yield memory[start : start + CHUNK_BYTES]

        return chunks

    def _copy_now(self, pairs: list[Pair]) -> None:
        """With all threads, this one included."""
        left = iter(sorted(pairs, key=lambda pair: pair[0].numel(), reverse=True))
        helpers = [self._pool.submit(_copy_all, left) for _ in range(min(self._threads, len(pairs)) - 1)]
        _copy_all(left)
        for helper in helpers:
            helper.result()


def _copy_all(left: Iterator[Pair]) -> None:
    for source, target in left:
        copy_bytes(source, target)


def copy_bytes(source: Tensor, target: Tensor) -> None:
    """Copy a CPU tensor's elements, in row-major order, to `target` (uint8, as many bytes)."""
    kind = _INTEGERS[source.element_size()]
    whole = source.detach().view(kind)
    np.copyto(target.view(kind).view(whole.shape).numpy(), whole.numpy())


def _copy_from_gpu(pairs: list[Pair]) -> torch.cuda.Event | None:
    """Queue copies to pinned memory behind what the GPU is doing; the event that they are done."""
    if not pairs:
        return None
    device = pairs[0][0].device
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    copying.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(copying):
        for source, target in pairs:
            whole = source.detach()
            target.view(whole.dtype).view(whole.shape).copy_(whole, non_blocking=True)
            whole.record_stream(copying)
        return copying.record_event()


def _fresh_memory(size: int, pinned: bool) -> Tensor:
    """Touched memory of `size` bytes, uint8; in huge pages where the system has them (twice as quick to touch)."""
    if pinned:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    tensor[:: mmap.PAGESIZE] = 0
    return tensor
