"""A training run, from a checked job to a registered model. Knows no Ray: its reporting comes in as a callback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convmlp_platform.checkpoints.checkpointer import Checkpointer
from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.distributed import joined_world, on_main
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.runs import run_folder
from convmlp_platform.training.build import parts
from convmlp_platform.training.build.initial_weights import (
    counted_weights,
    keep_weights,
    start_line,
    starting_job,
)
from convmlp_platform.training.callbacks import Callback, Console
from convmlp_platform.training.outputs.goodput_callback import GoodputLog, GoodputReport
from convmlp_platform.training.outputs.outputs import BestModel, Telemetry
from convmlp_platform.training.outputs.record import open_tracker, register_best
from convmlp_platform.training.outputs.sample_pictures import SamplePictures
from convmlp_platform.training.step_plan import StepPlan
from convmlp_platform.training.stop_request import StopRequest
from convmlp_platform.training.trainer import Trainer

# Seconds for MLflow when told to stop: who asks may kill soon, and the next start delivers the rest.
SHORT_GOODBYE = 3.0


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
    clock = clock or PhaseClock()
    with joined_world(use_gpu=job.launch.use_gpu is not False) as world:
        manifest = open_manifest(resolve(job.data.path, "data.path"), job.data.digest)
        folder, starting = on_main(world, lambda: begin(job, manifest.digest))
        train_loader = parts.build_train_loader(job, manifest, folder, world)
        plan = StepPlan(job, len(train_loader.split))
        task = parts.build_task(starting, manifest)
        if world.is_main and (line := start_line(starting, task.model, manifest)):
            print(f"model: {line}", flush=True)
        engine = parts.build_engine(job, task, manifest, world)
        tracker = open_tracker(job, manifest, folder, engine) if world.is_main else None
        watchers: list[Callback] = [goodput := GoodputLog(clock, folder, world, job.launch)]
        if tracker:
            watchers += [
                Console(plan.steps_per_epoch),
                Telemetry(tracker, folder),
                GoodputReport(tracker, folder),
            ]
        eval_loader = parts.build_eval_loader(job, manifest, folder, world)
        watchers.append(pictures := SamplePictures(job.name, eval_loader.split, folder, tracker))
        trainer = Trainer(
            plan,
            engine,
            train_loader,
            eval_loader,
            pictures.watching(task.metrics()),
            Checkpointer(run_folder.checkpoints_of(job), job.checkpoint.keep),
            parts.build_ledger(job, folder, train_loader, manifest),
            folder,
            BestModel(job, manifest, engine, folder),
            [*watchers, *callbacks],
            clock,
            stop or StopRequest(),
        )
        state = trainer.resume()
        complete = trainer.is_complete(state)
        try:
            if not complete:
                state = trainer.fit(state)
            registered = None
            if trainer.stopped is None:
                registered = on_main(
                    world, lambda: register_best(job, folder, state, tracker, trainer.eval_loader)
                )
        except BaseException:
            if tracker:
                tracker.finish("FAILED")
            raise
        finally:
            goodput.close()
        if tracker and trainer.stopped is None:
            tracker.finish("FINISHED")
        elif tracker and (stop is None or stop.final):
            tracker.finish("KILLED", timeout=SHORT_GOODBYE)
        return RunResult(
            state.metrics,
            state.best,
            trainer.checkpoint,
            registered,
            state.step,
            complete,
            trainer.stopped,
        )


def begin(job: TrainJob, dataset_digest: str) -> tuple[run_folder.RunFolder, TrainJob]:
    """Take the run's folder, with the weights to start from in it; and the job as this start of it needs it."""
    keep_weights(job)
    folder = run_folder.claim(job, dataset_digest, counted_weights(job))
    return folder, starting_job(job)
