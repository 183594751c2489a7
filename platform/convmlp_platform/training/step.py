"""One step of training, under the guard: compute, agree, judge, update or refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import Computed
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.training.guard.agreement import Agreement, agree
from convmlp_platform.training.guard.bad_steps import BadStep, BadSteps
from convmlp_platform.training.guard.guard import Action, Guard
from convmlp_platform.training.stop_request import StopRequest


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
