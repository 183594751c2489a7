"""Training metrics between two log lines."""

from __future__ import annotations

import math
from statistics import fmean

import torch

from convmlp_platform.distributed import World, sum_over_ranks
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock

_STEP = (Phase.COMPILE, Phase.DATA, Phase.COMPUTE, Phase.UPDATE)


class Meter:
    """Collects what the ranks agreed on at each step; `read` starts anew.

    `train/data_wait` is the share of this rank's time spent waiting for its next batch, averaged over ranks. Time that
    no step took (an evaluation, a checkpoint) does not count, by the rank's clock.
    """

    def __init__(self, world: World, global_batch_size: int, clock: PhaseClock) -> None:
        self.world, self.global_batch_size, self.clock = world, global_batch_size, clock
        self._reset()

    def _reset(self) -> None:
        self._losses: list[float] = []
        self._grad_norms: list[float] = []
        self._steps, self._before = 0, self.clock.read()

    def add(self, loss: float, grad_norm: float, *, updated: bool = True) -> None:
        """A step is done; where its update was refused its numbers don't count."""
        self._steps += 1
        if updated:
            self._losses.append(loss)
            self._grad_norms.append(grad_norm)

    def read(self, lr: float) -> dict[str, float]:
        """Mean loss and gradient norm of the steps since the last reading, and how fast they were (a collective)."""
        now = self.clock.read()
        seconds = {phase: now[phase] - self._before[phase] for phase in _STEP}
        elapsed = sum(seconds.values())
        share = torch.tensor(seconds[Phase.DATA] / elapsed / self.world.size, device=self.world.device)
        metrics = {
            "train/loss": fmean(self._losses) if self._losses else math.nan,
            "train/lr": lr,
            "train/images_per_second": self._steps * self.global_batch_size / elapsed,
            "train/data_wait": float(sum_over_ranks(share)),
        }
        if self._grad_norms:
            metrics["train/grad_norm"] = fmean(self._grad_norms)
        self._reset()
        return metrics
