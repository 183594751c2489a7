"""The exchange of the facts that all ranks need about a step before its update, in one small all-reduce."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

from convmlp_platform.distributed import sum_over_ranks
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import Computed

# Beyond it an Adam's squares overflow, and so does the norm that DeepSpeed takes for itself.
LARGEST_SQUARE = float(torch.finfo(torch.float32).max)


@dataclass(frozen=True)
class Agreement:
    """The same on every rank. `told`: whether any rank was told to stop; `loss`: the global batch's mean;
    `grad_norm`: L2 norm of the whole gradient before clipping, infinite where a square overflows float32."""

    told: bool
    loss: float
    grad_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def agree(engine: Engine, computed: Computed, told: bool) -> Agreement:
    """Exchange what each rank knows of the step just computed (collective)."""
    known = torch.stack(
        [computed.loss.double(), engine.square_norm(), computed.loss.new_tensor(told).double()]
    )
    loss, square, votes = sum_over_ranks(known).tolist()
    norm = math.sqrt(square) if square <= LARGEST_SQUARE else square if math.isnan(square) else math.inf
    return Agreement(votes > 0, loss, norm)


def first_reason(reason: str | None) -> str:
    """Returns the stop reason of the lowest rank that was asked to stop (collective).

    Args:
        reason: this rank's own reason; None: it was not asked to stop.
    """
    reasons: list[str | None] = [reason] * dist.get_world_size()
    if len(reasons) > 1:
        dist.all_gather_object(reasons, reason)
    return next((found for found in reasons if found is not None), "a request to stop")
