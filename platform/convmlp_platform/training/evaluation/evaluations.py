"""A run's evaluations, each exactly once: which one is owed, what it gave, and the best weights.

A step is committed before it is evaluated: what dies in an evaluation costs that evaluation alone. So no checkpoint
knows its own evaluation; the record does (`evaluation_record`).

The best model's bundle says itself which evaluation it is of. It is written after that evaluation is on record, from
weights that the step's checkpoint has too; a start that finds the record without the bundle writes it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from convmlp.tasks.task import Metrics
from convmlp_platform.data.reading.loader import EvalLoader
from convmlp_platform.distributed import on_main, sum_over_ranks
from convmlp_platform.engine.engine import Engine
from convmlp_platform.health.events import append_line
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.training.evaluation.evaluate import judge, merit
from convmlp_platform.training.evaluation.evaluation_record import Evaluation, read_evaluations
from convmlp_platform.training.outputs.outputs import BestModel
from convmlp_platform.training.step_plan import TrainState
from convmlp_platform.training.stop_request import StopRequest

logger = logging.getLogger(__name__)


class _ToldToStop(Exception):
    """A rank was told to stop in the middle of an evaluation."""


@dataclass
class Evaluations:
    """Evaluates, and keeps the record.

    Args:
        path: of the record.
        best: keeps the best weights.
        stop: is asked after each batch; whichever rank it tells, all leave off after the same batch.
    """

    engine: Engine
    loader: EvalLoader
    metrics: Metrics
    path: Path
    best: BestModel
    clock: PhaseClock
    stop: StopRequest
    _loaded: tuple[int, int] = (0, 0)
    """Step and attempt of the checkpoint that this process has gone on from."""
    _lines: list[Evaluation] = field(default_factory=list)
    """The lines that the record already had about the step and attempt in `_loaded`."""

    def resume(self, state: TrainState) -> None:
        """Complete the state of a checkpoint by what was evaluated after its commit (collective).

        Its best evaluation is that of the bundle, whatever the checkpoint says: one that was rolled back since, too.
        """
        self._loaded = state.step, state.attempt
        self._lines, best = on_main(self.engine.world, self._on_record)
        for line in self._lines:
            if line.metrics:
                state.metrics, state.evaluated = line.metrics, state.step
        state.best = best

    def _on_record(self) -> tuple[list[Evaluation], dict[str, float]]:
        try:
            lines = [
                line for line in read_evaluations(self.path) if (line.step, line.attempt) == self._loaded
            ]
        except OSError as error:
            logger.warning("%s can't be read: %s", self.path, error)
            lines = []
        return lines, self.best.metrics()

    def take(self, state: TrainState, may_record: Callable[[], None], *, last: bool) -> bool:
        """Evaluate a state and put it on record (collective); False: a rank was told to stop first.

        Args:
            may_record: raises where another attempt has taken this one's place.
            last: whether the run ends here.
        """
        try:
            with self.clock.during(Phase.EVALUATE):
                self._leave_off_if_told()
                metrics = judge(self.engine, self.loader, self.metrics, self._after_batch, last=last)
        except _ToldToStop:
            return False

        def record() -> None:
            may_record()
            self._append(state, durable=True, metrics=metrics)

        on_main(self.engine.world, record)
        state.metrics, state.evaluated = metrics, state.step
        self.keep_best(state)
        return True

    def _after_batch(self) -> None:
        self.clock.progress()
        self._leave_off_if_told()

    def _leave_off_if_told(self) -> None:
        told = torch.tensor(float(self.stop.reason is not None), device=self.engine.world.device)
        if sum_over_ranks(told).item():
            raise _ToldToStop

    def keep_best(self, state: TrainState) -> None:
        """Keep the weights, if they are the ones that `state.metrics` are of and none were better (collective)."""
        best_metric = self.engine.task.best_metric
        better = not state.best or merit(state.metrics, best_metric) > merit(state.best, best_metric)
        with self.clock.during(Phase.CHECKPOINT):  # rank 0 writes to a storage
            if state.evaluated == state.step and better:
                state.best = state.metrics
                self.best.keep(state)
            else:
                self.best.write()

    def was_told(self, state: TrainState) -> bool:
        """Whether watchers have heard of the newest evaluation, as far as this step's can be it."""
        lines = self._lines if self._loaded[0] == state.step else []
        return not any(line.metrics for line in lines) or any(line.told for line in lines)

    def has_ended(self) -> bool:
        """Whether the run ended with the step that this process went on from."""
        return any(line.ended for line in self._lines)

    def told(self, state: TrainState) -> None:
        """Note that watchers have heard of this step's evaluation."""
        if self.engine.world.is_main:
            self._append(state, told=True)

    def ended(self, state: TrainState) -> None:
        """Note that watchers have heard of the run's end."""
        if self.engine.world.is_main:
            self._append(state, ended=True)

    def _append(self, state: TrainState, *, durable: bool = False, **facts: object) -> None:
        """A storage that refuses costs this line: after a death before the next checkpoint it is done again."""
        attempt = self._loaded[1] if self._loaded[0] == state.step else state.attempt
        try:
            line = json.dumps({"step": state.step, "attempt": attempt, **facts})
            append_line(self.path, line, durable=durable)
        except OSError as error:
            logger.warning("the evaluation of step %d isn't on record: %s: %s", state.step, self.path, error)
