"""A training run, from a checked job to a registered model. Knows no Ray: its reporting comes in as a callback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.distributed import joined_world
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.training.build.build_run import build_run
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.stop_request import StopRequest


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Args:
        metrics: of the last evaluation.
        best: metrics of the best model.
        checkpoint: the newest one.
        registered: the registry URI of the best model; None if none was asked for or the registry could not be reached.
        steps: the steps that are done.
        stopped: the reason (`SIGTERM`, ...) for which the run was asked to stop after `steps` steps, with its state
            saved; None: it reached its end.
    """

    metrics: dict[str, float]
    best: dict[str, float]
    checkpoint: str | None
    registered: str | None
    steps: int
    already_complete: bool
    stopped: str | None = None


def run(
    job: TrainJob,
    callbacks: Sequence[Callback] = (),
    *,
    clock: PhaseClock | None = None,
    stop: StopRequest | None = None,
) -> RunResult:
    """Train `job` to its end on the ranks that the environment describes (the supervisor's, torchrun's, or just this
    process), going on from the newest checkpoint where there is one.

    Args:
        clock: is told what this rank does.
        stop: ends the run early, with its state saved, once any rank was told to stop.

    Raises:
        PlatformError: for all that a user can fix, on every rank alike.
    """
    with joined_world(use_gpu=job.launch.use_gpu is not False) as world:
        parts = build_run(job, world, callbacks, clock or PhaseClock(), stop or StopRequest())
        trainer = parts.trainer
        state = trainer.resume()
        complete = trainer.is_complete(state)
        with parts.recorded():
            if not complete:
                state = trainer.fit(state)
            registered = parts.register(state)
            parts.conclude(state, was_complete=complete)
        return RunResult(
            metrics=state.metrics,
            best=state.best,
            checkpoint=trainer.checkpoint,
            registered=registered,
            steps=state.step,
            already_complete=complete,
            stopped=trainer.stopped,
        )
