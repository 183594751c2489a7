"""torch's private names that the platform uses, each in one function. Nobody promises them: tests/convmlp_platform/
test_torch_internals.py fails by name where an upgrade takes one away. Tried with torch 2.15.0.

`convmlp/transforms/pixels.py` asks for two more, the antialiased resize of ATen.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

READER_DIED_IN = ("torch.utils.data.dataloader", "torch.utils.data._utils.signal_handling")
"""Modules that raise a plain RuntimeError where a `DataLoader`'s process has died."""


def norms_of(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The L2 norm of each tensor that has elements, 0-d, in few calls."""
    return list(torch._foreach_norm([tensor for tensor in tensors if tensor is not None and tensor.numel()]))


def scale_all(tensors: Sequence[Tensor | None], factor: float) -> None:
    """Multiply all in place, in few calls."""
    if factor != 1.0:
        torch._foreach_mul_([tensor for tensor in tensors if tensor is not None], factor)


def add_all(totals: list[Tensor], tensors: list[Tensor]) -> None:
    """Add each tensor to its total, in place, in few calls."""
    torch._foreach_add_(totals, tensors)


def copy_all(targets: list[Tensor], tensors: list[Tensor]) -> None:
    """Overwrite each target, in few calls."""
    torch._foreach_copy_(targets, tensors)


def move_all(values: list[Tensor], towards: list[Tensor], share: float) -> None:
    """Move each value this share of the way to another, in place, in few calls."""
    torch._foreach_lerp_(values, towards, share)


def begin_memory_history(most_events: int) -> None:
    """Have CUDA's allocator remember each allocation with its Python stack, the newest so many."""
    torch.cuda.memory._record_memory_history(max_entries=most_events)


def end_memory_history(snapshot: Path | None) -> None:
    """Write what was remembered to a file for PyTorch's memory viewer, where one is given, and forget it."""
    try:
        if snapshot is not None:
            torch.cuda.memory._dump_snapshot(os.fspath(snapshot))  # type: ignore[no-untyped-call]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
