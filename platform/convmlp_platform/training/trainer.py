"""The loop: steps, and what is due after them. A step is committed before it is evaluated."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from convmlp.tasks.task import Metrics
from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.checkpoints.checkpointer import Checkpointer
from convmlp_platform.data.reading.loader import EvalLoader, MicroBatch, TrainLoader
from convmlp_platform.distributed import on_main
from convmlp_platform.engine.engine import Engine
from convmlp_platform.errors import NumbersError
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.ledger.ledger import Ledger
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.evaluation.evaluations import Evaluations
from convmlp_platform.training.guard.agreement import first_reason
from convmlp_platform.training.guard.bad_steps import BadStep, BadSteps
from convmlp_platform.training.guard.guard import Action, Guard, Rollbacks
from convmlp_platform.training.outputs.outputs import BestModel
from convmlp_platform.training.saving import Saver, StateFacts, check_newest
from convmlp_platform.training.step import GuardedSteps, Meter, StepResult
from convmlp_platform.training.step_plan import StepPlan, TrainState
from convmlp_platform.training.stop_request import StopRequest


class _End(Enum):
    """How an attempt ended that needn't go back."""

    REACHED = auto()
    TOLD = auto()


@dataclass
class Trainer:
    """A run's parts, built by `training.build.build_run`; `fit` is the same under every strategy and launcher."""

    plan: StepPlan
    engine: Engine
    train_loader: TrainLoader
    eval_loader: EvalLoader
    metrics: Metrics
    checkpointer: Checkpointer
    ledger: Ledger
    folder: RunFolder
    best: BestModel
    callbacks: Sequence[Callback]
    clock: PhaseClock = field(default_factory=PhaseClock)
    stop: StopRequest = field(default_factory=StopRequest)
    stopped: str | None = None
    """The reason for which training was asked to stop; None: it has not stopped for one."""

    def __post_init__(self) -> None:
        world = self.engine.world
        self.guard = Guard(self.plan.job.guard, on_main(world, lambda: Rollbacks.read(self.folder.rollbacks)))
        self.saver = Saver(
            self.checkpointer,
            self.engine,
            self.clock,
            self._facts,
            self._tell_of_save,
            self.plan.job.launch.preemption_grace_s,
        )
        bad_steps = BadSteps(self.engine, self.folder.incidents)
        self._steps = GuardedSteps(
            self.engine, self.guard, bad_steps, self.clock, self.stop, self.saver.step_up_to
        )
        self.engine.on_micro_batch = self.clock.progress
        self.evaluations = Evaluations(
            self.engine,
            self.eval_loader,
            self.metrics,
            self.folder.evaluations,
            self.best,
            self.clock,
            self.stop,
        )
        self._reserved = self._has_record = False

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint's path or URL, once the run was resumed or (on rank 0, at last on all) has saved."""
        return self.saver.checkpoint

    def resume(self) -> TrainState:
        """The state to start from: the newest whole checkpoint's, or a fresh one (collective)."""
        newest = self.saver.newest()
        return TrainState() if newest is None else self._load(newest)

    def _load(self, location: str) -> TrainState:
        state, facts = self.saver.load(location)
        self.guard.load(facts.get("guard", {}), state.step)
        self._has_record = "evaluated" in facts
        self.evaluations.resume(state)
        return state

    def is_complete(self, state: TrainState) -> bool:
        """Whether nothing is left to do: no step, no evaluation, no report."""
        if state.step != self.plan.stop_step:
            return state.step > self.plan.stop_step
        # Of a release that kept no record of evaluations, a run at its last step has ended.
        return not self._owes_evaluation(state) and (self.evaluations.has_ended() or not self._has_record)

    def fit(self, state: TrainState) -> TrainState:
        """Train from `state` to the plan's end, or to the step or evaluation in which a rank is told to stop.

        Raises:
            NumbersError: loss or gradients stay wrong through all that `guard` allows.
        """
        self.clock.bear(self.train_loader.patience_s)
        while isinstance(end := self._attempt(state), BadStep):
            state = self._go_back(end)
        self.clock.enter(Phase.FINISH)
        if end is _End.TOLD:
            self.stopped = first_reason(self.stop.reason)
            self.saver.save(state, wait=True, on_request=True)
        self._record.close()
        self.saver.close()
        if self.stopped is not None:
            self._tell("on_stop", self.stopped, state)
            return state
        on_main(self.engine.world, lambda: self.best.write(last=True))
        self._tell("on_end", state)
        self.evaluations.ended(state)
        return state

    def _attempt(self, state: TrainState) -> BadStep | _End:
        """Train until the end, a stop, or a step from which the run must go back: then that."""
        stop = self.plan.stop_step
        self.clock.step = state.step  # an evaluation that is owed comes before the first step
        self._record = self.ledger.start(self.engine.world, state.step, state.attempt)
        state.attempt = self._record.header.attempt
        self.saver.open(self._record)
        self._tell("on_start", state, stop)
        told = not self._catch_up(state)
        meter = Meter(self.engine.world, self.plan.job.training.global_batch_size, self.clock)
        with closing(self.train_loader.steps(state.step, stop)) as batches:
            while state.step < stop and not told:
                result = self._step(state, batches, meter)
                if result.bad is not None and result.bad.action is Action.ROLLBACK:
                    return result.bad
                told = result.told
        return _End.TOLD if told else _End.REACHED

    def _step(self, state: TrainState, batches: Iterator[list[MicroBatch]], meter: Meter) -> StepResult:
        began = time.monotonic()
        self.clock.enter(Phase.DATA, step=state.step, note=self.train_loader.pending(state.step))
        micro_batches = next(batches)
        lr = self.plan.lr(state.step)
        result = self._steps.take(micro_batches, step=state.step, lr=lr, attempt=state.attempt)
        if result.bad is not None and result.bad.action in (Action.ROLLBACK, Action.STOP):
            self._tell("on_bad_step", result.bad, state)
            if result.bad.action is Action.STOP:
                raise numbers_error(self.plan.job.name, self.folder, result.bad)
            return result
        self._record.append(state.step, micro_batches)
        state.step += 1
        state.samples_seen += self.plan.job.training.global_batch_size
        self.clock.step_done(state.step, time.monotonic() - began)
        meter.add(result.agreed.loss, result.agreed.grad_norm, updated=result.updated)
        if result.bad is not None:
            self._tell("on_bad_step", result.bad, state)
        if result.updated and not self._reserved:
            self._reserved = True
            self.saver.reserve(state)
        return replace(result, told=not self._after_step(state, meter, lr, result.told))

    def _after_step(self, state: TrainState, meter: Meter, lr: float, told: bool) -> bool:
        """Log, save, then evaluate, as is due; False: a rank was told to stop (`told`: in the step itself)."""
        if self.plan.logs_after(state.step):
            self._tell("on_log", meter.read(lr), state)
        evaluates = self.plan.evaluates_after(state.step)
        if self.saver.owed or self.plan.saves_after(state.step):
            self.saver.save(state, wait=evaluates)
            if evaluates:
                self.saver.wait_tried()
        self.saver.poll()
        if evaluates and not told:
            told = not self._evaluate(state)
        return not told

    def _evaluate(self, state: TrainState) -> bool:
        """Evaluate a state whose step is committed; False: a rank was told to stop first."""
        if not self.evaluations.take(
            state, lambda: check_newest(self._record), last=state.step == self.plan.stop_step
        ):
            return False
        self._tell_evaluation(state)
        return True

    def _tell_evaluation(self, state: TrainState) -> None:
        with self.clock.during(Phase.CHECKPOINT):
            self._tell("on_evaluation", state.metrics, state)
        self.evaluations.told(state)

    def _owes_evaluation(self, state: TrainState) -> bool:
        """Whether the run died, or was stopped, between the commit of this step and the end of its evaluation."""
        due = 0 < state.step <= self.plan.stop_step and self.plan.evaluates_after(state.step)
        return due and state.evaluated != state.step

    def _catch_up(self, state: TrainState) -> bool:
        """Do the work that was left undone after the commit of the step that training goes on from.

        Returns False if a rank was asked to stop during it.
        """
        if self._owes_evaluation(state):
            return self._evaluate(state)
        if not self.evaluations.was_told(state):
            self.evaluations.keep_best(state)
            self._tell_evaluation(state)
        return True

    def _go_back(self, bad: BadStep) -> TrainState:
        """Put the run where it stood before the first of the bad steps, as a restart would (collective).

        Killed at any point here, the next start does the same, or goes on from a later checkpoint.
        """
        with self.clock.during(Phase.CHECKPOINT):
            self._record.close()
            self.saver.abandon()
            self.guard.rolled_back(bad.step)
            on_main(self.engine.world, lambda: self.guard.rollbacks.write(self.folder.rollbacks))
            location = self.saver.newest(bad.back_to)
            assert location is not None  # it was there when the guard decided
            state = self._load(location)
            self.saver.discard_after(state.step)
        return state

    def _facts(self, state: TrainState) -> StateFacts:
        return {
            "epoch": self.plan.epochs_after(state.step),
            "identity": self.folder.identity,
            "classes": self.train_loader.split.manifest.classes,
            "guard": self.guard.facts(),
        }

    def _tell_of_save(self, event: SaveEvent) -> None:
        self._tell("on_save", event)

    def _tell(self, hook: str, *values: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*values)


def numbers_error(run: str, folder: RunFolder, bad: BadStep) -> NumbersError:
    """Returns the error that ends the run; it says why the run ends, and how to investigate."""
    before = (
        f" after {bad.skipped} skipped steps and {bad.rollbacks} rollbacks"
        if bad.skipped or bad.rollbacks
        else ""
    )
    return NumbersError(
        f"run {run}: step {bad.step} is wrong, also when computed again{before}: {bad.message}\n"
        f"samples: {bad.shown_samples}\n"
        f"record: {bad.incident or folder.incidents}\n"
        f"look into it: convmlp replay --run {folder.path} --step {bad.step}"
    )
