"""BatchNorm's running statistics as a function of the global batch, not of who computed which part of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convmlp_platform.distributed import sum_over_ranks
from convmlp_platform.torch_internals import add_all, copy_all

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class BatchNormAverager:
    """Moves running means and variances once a step, by the mean of all micro-batches' statistics.

    Left alone, they would move once for each micro-batch of this rank and follow rank 0's images only. Here
    every micro-batch starts from the values at the step's begin, and the results are averaged over all
    micro-batches of all ranks: (1 - m) r + m mean(s), the same on any world size.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
        self._running: list[Tensor] = [
            buffer for m in norms for buffer in (m.running_mean, m.running_var) if buffer is not None
        ]
        self._counts: list[Tensor] = [
            m.num_batches_tracked for m in norms if m.num_batches_tracked is not None
        ]

    def begin_step(self) -> None:
        """Remember where the statistics stand."""
        if self._running:
            self._start = [buffer.clone() for buffer in self._running]
            self._sums = [torch.zeros_like(buffer) for buffer in self._running]
            self._count_start = [count.clone() for count in self._counts]

    @torch.no_grad()
    def after_micro_batch(self, *, counts: bool) -> None:
        """Take in what a forward pass did to the statistics (unless it was a ghost), and undo it."""
        if not self._running:
            return
        if counts:
            add_all(self._sums, self._running)
        copy_all(self._running, self._start)

    @torch.no_grad()
    def end_step(self, num_micro_batches: int) -> None:
        """Set the average over the step's micro-batches (collective: one small all-reduce)."""
        if not self._running:
            return
        flat = sum_over_ranks(torch.cat([total.flatten() for total in self._sums])).div_(num_micro_batches)
        parts = torch.split(flat, [buffer.numel() for buffer in self._running])
        for buffer, part in zip(self._running, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
        for count, start in zip(self._counts, self._count_start, strict=True):
            count.copy_(start + 1)

    @torch.no_grad()
    def undo_step(self) -> None:
        """Leave the statistics where they stood at the step's begin."""
        if self._running:
            copy_all(self._running, self._start)
        for count, start in zip(self._counts, self._count_start if self._running else (), strict=True):
            count.copy_(start)
