"""A training run, from a checked job to a registered model. Knows no Ray: its reporting comes in as a callback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convmlp_platform.checkpoints.checkpointer import Checkpointer
from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.split import open_manifest
from convmlp_platform.distributed import joined_world, on_main
from convmlp_platform.training import build, run_folder
from convmlp_platform.training.callbacks import Callback, Console
from convmlp_platform.training.outputs import BestModel, Telemetry
from convmlp_platform.training.plan import StepPlan
from convmlp_platform.training.record import open_tracker, register_best
from convmlp_platform.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """What came of a run: the last evaluation's metrics, its newest checkpoint, the registry URI of its best model
    (None where none was asked for or the registry could not be reached)."""

    metrics: dict[str, float]
    best: dict[str, float]
    checkpoint: str | None
    registered: str | None
    steps: int
    already_complete: bool


def run(job: TrainJob, callbacks: Sequence[Callback] = ()) -> RunResult:
    """Train `job` to its end on the ranks that the environment describes (Ray Train's, torchrun's, or just this
    process), going on from the newest checkpoint where there is one.

    Raises:
        PlatformError: for all that a user can fix, on every rank alike.
    """
    with joined_world(use_gpu=job.launch.use_gpu is not False) as world:
        manifest = open_manifest(resolve(job.data.path, "data.path"), job.data.digest)
        folder = on_main(world, lambda: run_folder.claim(job, manifest.digest))
        train_loader = build.build_train_loader(job, manifest, folder, world)
        plan = StepPlan(job, len(train_loader.split))
        task = build.build_task(job, job.model.num_classes or manifest.num_classes)
        engine = build.build_engine(job, task, manifest, world)
        tracker = open_tracker(job, manifest, folder, engine) if world.is_main else None
        watchers = [Console(plan.steps_per_epoch), Telemetry(tracker, folder)] if tracker else []
        trainer = Trainer(
            plan,
            engine,
            train_loader,
            build.build_eval_loader(job, manifest, folder, world),
            task.metrics(),
            Checkpointer(run_folder.checkpoints_of(job), job.checkpoint.keep),
            build.build_ledger(job, folder, train_loader, manifest),
            folder.identity,
            [*watchers, BestModel(job, manifest, engine, folder), *callbacks],
        )
        state = trainer.resume()
        complete = state.step >= plan.stop_step
        try:
            if not complete:
                state = trainer.fit(state)
            registered = on_main(
                world, lambda: register_best(job, folder, state, tracker, trainer.eval_loader)
            )
        except BaseException:
            if tracker:
                tracker.finish("FAILED")
            raise
        if tracker:
            tracker.finish("FINISHED")
        return RunResult(state.metrics, state.best, trainer.checkpoint, registered, state.step, complete)
