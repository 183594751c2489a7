"""The loop: steps, and what is due after them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchmetrics import MetricCollection

from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.data.ledger import Ledger, LedgerWriter
from convmlp_platform.data.loader import EvalLoader, TrainLoader
from convmlp_platform.distributed import on_main, wait_for_all
from convmlp_platform.engine.base import Engine, EngineState
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
    checkpoint: Path | None = None
    """The newest checkpoint, once the run was resumed or has saved."""
    _record: LedgerWriter = field(init=False)

    def resume(self) -> TrainState:
        """The state to start from: the newest whole checkpoint's, or a fresh one (collective)."""
        self.checkpoint = on_main(self.engine.world, self.checkpointer.latest)
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
        if self.plan.saves_after(state.step):
            self._tell("on_checkpoint", self.save(state), state)
        meter.exclude(time.perf_counter() - started)

    def save(self, state: TrainState) -> Path:
        """Commit a checkpoint (collective), once every rank's record of what led to it is durable."""
        self._record.sync()
        wait_for_all(self.engine.world)
        engine_state = self.engine.state()
        tensors = {"model": engine_state.model, "optimizer": engine_state.optimizer}
        if engine_state.ema is not None:
            tensors["ema"] = engine_state.ema
        facts = {
            "samples_seen": state.samples_seen,
            "attempt": state.attempt,
            "epoch": self.plan.epochs_after(state.step),
            "metrics": state.metrics,
            "best": state.best,
            "updates": engine_state.updates,
            "extra": engine_state.extra,
            "identity": self.identity,
        }
        checkpoint = Checkpoint(state.step, tensors, facts)
        self.checkpoint = on_main(self.engine.world, lambda: self.checkpointer.save(checkpoint))
        return self.checkpoint

    def _tell(self, hook: str, *values: object) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*values)
