"""Norms and factors of many gradients in few calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def norms_of(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The L2 norm of each tensor that has elements."""
    return list(torch._foreach_norm([tensor for tensor in tensors if tensor is not None and tensor.numel()]))


def scale_all(tensors: Sequence[Tensor | None], factor: float) -> None:
    """Multiply in place."""
    if factor != 1.0:
        torch._foreach_mul_([tensor for tensor in tensors if tensor is not None], factor)
