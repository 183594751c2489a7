"""Training metrics between two log lines, gathered without making the device wait at every step."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from convmlp_platform.distributed import World, sum_over_ranks
from convmlp_platform.engine.base import StepOutput


class Meter:
    """Collects step outputs; `read` reduces them over ranks (a collective) and starts anew.

    `train/data_wait` is the share of this rank's time spent waiting for its next batch, averaged over ranks.
    """

    def __init__(self, world: World, global_batch_size: int) -> None:
        self.world, self.global_batch_size = world, global_batch_size
        self._reset()

    def _reset(self) -> None:
        self._losses: list[Tensor] = []
        self._grad_norms: list[Tensor] = []
        self._waited, self._since = 0.0, time.perf_counter()

    def waited(self, seconds: float) -> None:
        """This rank waited for its batch."""
        self._waited += seconds

    def exclude(self, seconds: float) -> None:
        """Leave out time that no step took: an evaluation, a checkpoint."""
        self._since += seconds

    def add(self, output: StepOutput) -> None:
        self._losses.append(output.loss)
        if output.grad_norm is not None:
            self._grad_norms.append(output.grad_norm)

    def read(self, lr: float) -> dict[str, float]:
        """Mean loss and gradient norm of the steps since the last reading, and how fast they were."""
        steps = len(self._losses)
        loss = torch.stack(self._losses).mean()
        elapsed = time.perf_counter() - self._since
        share = torch.tensor(self._waited / elapsed / self.world.size, device=self.world.device)
        sums = sum_over_ranks(torch.stack([loss, share]))
        metrics = {
            "train/loss": float(sums[0]),
            "train/lr": lr,
            "train/images_per_second": steps * self.global_batch_size / elapsed,
            "train/data_wait": float(sums[1]),
        }
        if self._grad_norms:
            metrics["train/grad_norm"] = float(
                torch.stack([norm.float() for norm in self._grad_norms]).mean()
            )
        self._reset()
        return metrics
