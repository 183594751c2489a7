"""One step of training, under the guard: compute, agree, judge, update or refuse; and the means that are logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch

from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.distributed import World, sum_over_ranks
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import Computed
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.training.guard.agreement import Agreement, agree
from convmlp_platform.training.guard.bad_steps import BadStep, BadSteps
from convmlp_platform.training.guard.guard import Action, Guard
from convmlp_platform.training.stop_request import StopRequest

_STEP = (Phase.COMPILE, Phase.DATA, Phase.COMPUTE, Phase.UPDATE)


@dataclass(frozen=True)
class StepResult:
    """`told`: whether any rank was told to stop; `updated`: whether the weights moved; `bad`: set where the step was
    wrong, also where computing it again cured it."""

    agreed: Agreement
    told: bool
    updated: bool
    bad: BadStep | None = None


@dataclass
class GuardedSteps:
    """Takes steps. `goes_back_to(first_bad)` says how many steps the checkpoint has that a rollback from before
    the bad step `first_bad` would load (collective; None: there is none)."""

    engine: Engine
    guard: Guard
    bad_steps: BadSteps
    clock: PhaseClock
    stop: StopRequest
    goes_back_to: Callable[[int], int | None]
    _first: bool = field(init=False, default=True)

    def take(self, micro_batches: Sequence[MicroBatch], *, step: int, lr: float, attempt: int) -> StepResult:
        """Compute a step and do with it what the guard says (collective). After `SKIP`, `ROLLBACK` and `STOP` weights
        and all else are as before it."""
        computed, agreed = self._compute(micro_batches, step)
        told = agreed.told
        if not agreed.finite and self._overflowed(agreed):
            return self._done(StepResult(agreed, told, updated=False))
        verdict = self.guard.judge(step, agreed.loss, agreed.grad_norm)
        if verdict.action is Action.ACCEPT:
            self.engine.update(lr, agreed.grad_norm)
            return self._done(StepResult(agreed, told, updated=True))
        self.engine.refuse()
        suspect = self.bad_steps.suspect(agreed, computed)
        self.clock.progress()
        _, agreed = self._compute(micro_batches, step)
        told |= agreed.told
        second = self.guard.judge(step, agreed.loss, agreed.grad_norm, again=True)
        accepted, back_to = second.action is Action.ACCEPT, None
        if accepted:
            second = replace(verdict, action=Action.ACCEPT)
        else:
            self.engine.refuse()
        if second.action is Action.ROLLBACK:
            back_to = self.goes_back_to(self.guard.first_bad)
            if back_to is None:
                second = replace(second, action=Action.STOP)
        with self.clock.during(Phase.CHECKPOINT):  # rank 0 writes weights to a storage
            bad = self.bad_steps.record(
                step,
                suspect,
                second,
                micro_batches,
                lr=lr,
                attempt=attempt,
                guard=self.guard,
                back_to=back_to,
            )
        if accepted:
            self.engine.update(lr, agreed.grad_norm)
        return self._done(StepResult(agreed, told, updated=accepted, bad=bad))

    def _compute(self, micro_batches: Sequence[MicroBatch], step: int) -> tuple[Computed, Agreement]:
        self.clock.enter(Phase.COMPILE if self._first else Phase.COMPUTE)
        computed = self.engine.compute(micro_batches, step=step)
        if not self._first:
            self.clock.enter(Phase.UPDATE)
        return computed, agree(self.engine, computed, self.stop.reason is not None)

    def _overflowed(self, agreed: Agreement) -> bool:
        """fp16's loss scale was too high: the step is left out, which is normal and no incident."""
        if agreed.loss != agreed.loss or abs(agreed.loss) == float("inf"):
            return False
        if not self.engine.absorb_overflow():
            return False
        self.engine.refuse()
        return True

    def _done(self, result: StepResult) -> StepResult:
        self._first = False
        return result


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
