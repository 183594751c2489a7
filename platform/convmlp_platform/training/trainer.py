"""The loop: steps, and what is due after them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torchmetrics import MetricCollection

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.layout import Part
from convmlp_platform.checkpoints.tensor_file import Slice
from convmlp_platform.data.ledger import Ledger, LedgerWriter
from convmlp_platform.data.loader import EvalLoader, TrainLoader
from convmlp_platform.distributed import on_main, sum_over_ranks, wait_for_all
from convmlp_platform.engine.base import Engine, EngineState, OwnState
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.evaluate import evaluate
from convmlp_platform.training.meter import Meter
from convmlp_platform.training.plan import StepPlan
from convmlp_platform.training.state import TrainState

# What "best" means: the evaluation metric that decides which weights are kept.
BEST_METRIC = "eval/top1"


@dataclass
class Trainer:
    """A run's parts, built by `training.build`; `fit` is the same under every strategy and launcher."""

    plan: StepPlan
    engine: Engine
    train_loader: TrainLoader
    eval_loader: EvalLoader
    metrics: MetricCollection
    checkpointer: Checkpointer
    ledger: Ledger
    identity: str
    callbacks: Sequence[Callback]
    checkpoint: str | None = None
    """The newest checkpoint's path or URL, once the run was resumed or (on rank 0, at last on all) has saved."""
    _record: LedgerWriter = field(init=False)
    _saver: AsyncCheckpointer | None = field(init=False, default=None)
    """None on ranks that write nothing."""
    _owed: bool = field(init=False, default=False)
    """Whether a save was put off because the one before was still being written."""

    def resume(self) -> TrainState:
        """The state to start from: the newest whole checkpoint's, or a fresh one (collective)."""
        self.checkpoint = on_main(self.engine.world, self.checkpointer.newest)
        if self.checkpoint is None:
            return TrainState()
        checkpoint = load(self.checkpoint)
        tensors, facts = checkpoint.tensors, checkpoint.facts
        self.engine.load_state(
            EngineState(
                tensors["model"],
                tensors.get("optimizer", {}),
                tensors.get("ema"),
                facts["updates"],
                facts["extra"],
            )
        )
        seen, attempt = facts["samples_seen"], facts.get("attempt", 0)
        return TrainState(checkpoint.step, seen, attempt, facts["metrics"], facts["best"])

    def fit(self, state: TrainState) -> TrainState:
        """Train from `state` to the plan's end."""
        stop, batch_size = self.plan.stop_step, self.plan.job.training.global_batch_size
        self._record = self.ledger.start(self.engine.world, state.step, state.attempt)
        state.attempt = self._record.header.attempt
        self._open_saver(state.attempt)
        self._tell("on_start", state, stop)
        meter = Meter(self.engine.world, batch_size)
        batches = self.train_loader.steps(state.step, stop)
        while state.step < stop:
            asked = time.perf_counter()
            micro_batches = next(batches)
            meter.waited(time.perf_counter() - asked)
            lr = self.plan.lr(state.step)
            meter.add(self.engine.train_step(micro_batches, step=state.step, lr=lr))
            self._record.append(state.step, micro_batches)
            state.step += 1
            state.samples_seen += batch_size
            self._after_step(state, meter, lr)
        self._record.close()
        self._close_saver()
        self._tell("on_end", state)
        return state

    def _after_step(self, state: TrainState, meter: Meter, lr: float) -> None:
        if self.plan.logs_after(state.step):
            self._tell("on_log", meter.read(lr), state)
        started = time.perf_counter()
        if self.plan.evaluates_after(state.step):
            state.metrics = evaluate(self.engine, self.eval_loader, self.metrics)
            if not state.best or state.metrics[BEST_METRIC] > state.best[BEST_METRIC]:
                state.best = state.metrics
            self._tell("on_evaluation", state.metrics, state)
        if self._owed or self.plan.saves_after(state.step):
            self.save(state, wait=state.step == self.plan.stop_step)
        self._tell_of_saves()
        meter.exclude(time.perf_counter() - started)

    def save(self, state: TrainState, wait: bool = False) -> None:
        """Begin a checkpoint (collective), once every rank's record of what led to it is durable; `on_save` tells what
        becomes of it.

        While the one before is still being written it is put off to the first step after that, unless it must `wait`.
        """
        if not wait and self._some_rank_writes():
            if self._saver and self.engine.world.is_main and not self._owed:
                self._saver.skip(state.step)
            self._owed = True
            return
        self._owed = False
        self._record.sync()
        wait_for_all(self.engine.world)
        if self._saver:
            own = self.engine.own_state()
            self._saver.save(self._checkpoint(state, own), wait=True, changing=own.changing)

    def _checkpoint(self, state: TrainState, own: OwnState) -> Checkpoint:
        facts = {
            "samples_seen": state.samples_seen,
            "attempt": state.attempt,
            "epoch": self.plan.epochs_after(state.step),
            "metrics": state.metrics,
            "best": state.best,
            "updates": self.engine.updates,
            "extra": self.engine.extra_state(),
            "identity": self.identity,
        }
        slices = {
            group: {name: Slice(shape, start) for name, (shape, start) in runs.items()}
            for group, runs in own.runs.items()
        }
        return Checkpoint(state.step, own.groups, facts, slices)

    def _open_saver(self, attempt: int) -> None:
        world, shared = self.engine.world, self.engine.every_rank_writes
        if world.is_main or shared:
            part = Part(world.rank, world.size) if shared else Part()
            self._saver = AsyncCheckpointer(self.checkpointer, part=part, session=f"attempt-{attempt}")
            self.engine.before_update = self._saver.settle

    def _close_saver(self) -> None:
        """Wait for the last checkpoint to be committed; its refusal ends every rank alike (collective)."""
        saver = self._saver
        self.checkpoint = (
            on_main(self.engine.world, lambda: saver.close() if saver else None) or self.checkpoint
        )
        self._tell_of_saves()

    def _some_rank_writes(self) -> bool:
        busy = float(self._saver is not None and self._saver.busy)
        return bool(sum_over_ranks(torch.tensor(busy, device=self.engine.world.device)).item())

    def _tell_of_saves(self) -> None:
        for event in self._saver.poll() if self._saver and self.engine.world.is_main else []:
            if event.kind == "committed":
                self.checkpoint = event.location
            self._tell("on_save", event)

    def _tell(self, hook: str, *values: object) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*values)
