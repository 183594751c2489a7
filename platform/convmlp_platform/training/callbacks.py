"""The callbacks that watch a run. They see metrics and state; they do not control the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.evaluation.evaluate import scores_of, taken_weights
from convmlp_platform.training.evaluation.evaluation_record import scores_line
from convmlp_platform.training.guard.bad_steps import BadStep
from convmlp_platform.training.guard.guard import Action
from convmlp_platform.training.step_plan import TrainState
from data_prep.console import say, short_duration


class Callback:
    """Hooks of a run, called on every rank with the same values (means over all ranks); those that a job names in
    `callbacks`, on rank 0 alone. The step waits for each."""

    def on_run(self, job: TrainJob, folder: RunFolder) -> None:
        """Once, before all else: the checked job with all its values, and the run's folder."""

    def on_start(self, state: TrainState, stop_step: int) -> None:
        """Before the first step of an attempt; `state.step` > 0 where the run goes on from a checkpoint. Called again
        after a rollback."""

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        """Every `training.log_every_steps` steps: train/loss, train/lr, train/images_per_second, ..."""

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        """After an evaluation, which is on record: eval/loss, eval/top1 (per cent), ... A process that dies in here is
        told again when it goes on."""

    def on_save(self, event: SaveEvent) -> None:
        """A checkpoint was committed, refused by the storage, put off, removed or loaded; on rank 0 alone. One is
        loaded before `on_start`."""

    def on_bad_step(self, bad: BadStep, state: TrainState) -> None:
        """After a step whose numbers were wrong; `state.step` counts it."""

    def on_stop(self, reason: str, state: TrainState) -> None:
        """After the step in which a rank was told to stop, for `reason`; the state is saved."""
        self.on_end(state)

    def on_end(self, state: TrainState) -> None:
        """After the last step."""

    def on_closed(self, state: TrainState, tracker: Tracker | None) -> None:
        """At the very end of a run: its best model is registered, this rank's time is written down to the last second.
        `tracker`, on rank 0 alone, still delivers what it gets here. Not called where the run was told to stop."""


class Console(Callback):
    """Progress for people, on rank 0's standard output."""

    def __init__(self, steps_per_epoch: float) -> None:
        self.steps_per_epoch = steps_per_epoch

    def on_start(self, state: TrainState, stop_step: int) -> None:
        self._stop, self._first, self._started = stop_step, state.step, time.monotonic()
        where = f"goes on after step {state.step}" if state.step else "starts"
        self._say(f"training {where}, until step {stop_step} ({stop_step / self.steps_per_epoch:.1f} epochs)")

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        done = state.step - self._first
        left = (time.monotonic() - self._started) / done * (self._stop - state.step)
        self._say(
            f"step {state.step}/{self._stop}  epoch {state.step / self.steps_per_epoch:.2f}"
            f"  loss {metrics['train/loss']:.4f}  lr {metrics['train/lr']:.2e}"
            f"  {metrics['train/images_per_second']:.0f} img/s  data wait {metrics['train/data_wait']:.0%}"
            f"  left {short_duration(left)}"
        )

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        best = "  (best so far)" if state.best == metrics else ""
        epoch = state.step / self.steps_per_epoch
        self._say(f"evaluation after epoch {epoch:.1f}: {scores_line(scores_of(metrics))}{best}")
        average, plain = scores_of(metrics, "average"), scores_of(metrics, "plain")
        if plain:
            taken = taken_weights(metrics, averages=True)
            self._say(
                f"  average of the weights: {scores_line(average)}; plain: {scores_line(plain)}; {taken} taken"
            )

    def on_save(self, event: SaveEvent) -> None:
        if event.kind == "failed":
            self._say(f"checkpoint at step {event.step}: {event.message}")

    def on_bad_step(self, bad: BadStep, state: TrainState) -> None:
        done = {
            Action.ACCEPT: "computed again it is right: a fault of this machine?",
            Action.SKIP: "also when computed again; skipped",
            Action.ROLLBACK: f"also when computed again; going back to step {bad.back_to}",
            Action.STOP: "also when computed again; stopping",
        }
        record = f"  ({bad.incident})" if bad.incident else ""
        self._say(f"step {bad.step}: {bad.message}; {done[bad.action]}{record}")

    def on_stop(self, reason: str, state: TrainState) -> None:
        self._say(f"told to stop ({reason}): step {state.step} is saved")

    def _say(self, line: str) -> None:
        say(line)


class StepsDone(Callback):
    """Tells how many steps are done, where an attempt begins and whenever it logs."""

    def __init__(self, at_step: Callable[[int], None]) -> None:
        self._at_step = at_step

    def on_start(self, state: TrainState, stop_step: int) -> None:
        self._at_step(state.step)

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        self._at_step(state.step)
