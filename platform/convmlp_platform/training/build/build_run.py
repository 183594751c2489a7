"""From a job to the run that trains it: all its parts, and who watches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from convmlp_platform.checkpoints.checkpointer import Checkpointer
from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.distributed import World, on_main
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.runs import run_folder
from convmlp_platform.tracking.tracker import EndStatus, Tracker
from convmlp_platform.training.build import parts
from convmlp_platform.training.build.initial_weights import (
    counted_weights,
    keep_weights,
    start_line,
    starting_job,
)
from convmlp_platform.training.callbacks import Callback, Console
from convmlp_platform.training.given_callbacks import GuardedCallback, given_callbacks
from convmlp_platform.training.outputs.goodput_callback import GoodputLog, GoodputReport
from convmlp_platform.training.outputs.outputs import BestModel, Telemetry
from convmlp_platform.training.outputs.record import checkpoint_log, open_tracker, register_best
from convmlp_platform.training.outputs.sample_pictures import SamplePictures
from convmlp_platform.training.outputs.system_metrics import SystemMetrics
from convmlp_platform.training.profiling.profiler import StepProfiler
from convmlp_platform.training.step_plan import StepPlan, TrainState
from convmlp_platform.training.stop_request import StopRequest
from convmlp_platform.training.trainer import Trainer
from data_prep.console import say
from data_prep.images.jpeg_box import way_of_decoding

# Seconds for MLflow when told to stop: who asks may kill soon, and the next start delivers the rest.
SHORT_GOODBYE = 3.0


@dataclass(frozen=True)
class RunParts:
    """One rank's part of a run. `tracker`: on rank 0, its record in MLflow; None on the others."""

    job: TrainJob
    world: World
    folder: run_folder.RunFolder
    trainer: Trainer
    tracker: Tracker | None
    goodput: GoodputLog

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within, the run is trained; at the end, MLflow hears how it ended, and the goodput log is closed."""
        try:
            yield
        except BaseException:
            self._finish("FAILED")
            raise
        finally:
            self.goodput.close()
        if self.trainer.stopped is None:
            self._finish("FINISHED")
        elif self.trainer.stop.final:
            self._finish("KILLED", timeout=SHORT_GOODBYE)

    def _finish(self, status: EndStatus, **options: float) -> None:
        if self.tracker:
            self.tracker.finish(status, **options)

    def conclude(self, state: TrainState, *, was_complete: bool) -> None:
        """Tell those who watch that all is on record, once a run. Of a run that was complete before, what a death at
        its very end left undone is done."""
        done = self.folder.plots / "goodput.json"
        if self.trainer.stopped is not None or (was_complete and done.is_file()):
            return
        self.goodput.close()
        for callback in self.trainer.callbacks:
            callback.on_closed(state, self.tracker)

    def register(self, state: TrainState) -> str | None:
        """Put the best model of a run that was not stopped into the registry; its URI, or None (collective)."""
        if self.trainer.stopped is not None:
            return None
        trainer = self.trainer
        return on_main(
            self.world,
            lambda: register_best(
                self.job, self.folder, state, self.tracker, trainer.eval_loader, trainer.train_loader.split
            ),
        )


def build_run(
    job: TrainJob, world: World, callbacks: Sequence[Callback], clock: PhaseClock, stop: StopRequest
) -> RunParts:
    """Take the run's folder and build all that `job` names (collective).

    Raises:
        PlatformError: for all that a user can fix, on every rank alike.
    """
    manifest = open_manifest(resolve(job.data.path, "data.path"), job.data.digest)
    folder, starting = on_main(world, lambda: begin(job, manifest.digest))
    train_loader = parts.build_train_loader(job, manifest, folder, world)
    plan = StepPlan(job, len(train_loader.split))
    task = parts.build_task(starting, manifest)
    if world.is_main and (line := start_line(starting, task.model, manifest)):
        say(f"model: {line}")
    if world.is_main:
        say(f"reading: {way_of_decoding()}")
    engine = parts.build_engine(job, task, manifest, world)
    tracker = open_tracker(job, manifest, folder, engine) if world.is_main else None
    watchers: list[Callback] = [
        goodput := GoodputLog(clock, folder, world, job.launch),
        SystemMetrics(world, tracker),
    ]
    if tracker:
        watchers += [
            Console(plan.steps_per_epoch),
            Telemetry(tracker, folder, checkpoint_log(job, manifest, folder, engine, tracker)),
            GoodputReport(tracker, folder),
        ]
    eval_loader = parts.build_eval_loader(job, manifest, folder, world)
    watchers.append(pictures := SamplePictures(job.name, eval_loader.split, folder, tracker))
    watchers.append(StepProfiler(job, engine, clock, folder, tracker))
    if tracker:
        watchers += guarded_callbacks(job, folder, tracker)
    trainer = Trainer(
        plan=plan,
        engine=engine,
        train_loader=train_loader,
        eval_loader=eval_loader,
        metrics=pictures.watching(task.metrics()),
        checkpointer=Checkpointer(run_folder.checkpoints_of(job), job.checkpoint.keep),
        ledger=parts.build_ledger(job, folder, train_loader, manifest),
        folder=folder,
        best=BestModel(job, manifest, engine, folder),
        callbacks=[*watchers, *callbacks],
        clock=clock,
        stop=stop,
    )
    for callback in trainer.callbacks:
        callback.on_run(job, folder)
    return RunParts(job, world, folder, trainer, tracker, goodput)


def guarded_callbacks(job: TrainJob, folder: run_folder.RunFolder, tracker: Tracker) -> list[Callback]:
    """Those of rank 0 that a setting turns on or names: what is wrong with them costs no step."""

    def tensorboard() -> Callback:
        from convmlp_platform.training.outputs.tensorboard import TensorBoard

        return TensorBoard(tracker, folder)

    wanted: list[Callback] = []
    if job.tracking.tensorboard:
        wanted.append(GuardedCallback("tracking.tensorboard", folder, tensorboard))
    return wanted + given_callbacks(job, folder)


def begin(job: TrainJob, dataset_digest: str) -> tuple[run_folder.RunFolder, TrainJob]:
    """Take the run's folder, with the weights to start from in it; and the job as this start of it needs it."""
    keep_weights(job)
    folder = run_folder.claim(job, dataset_digest, counted_weights(job))
    return folder, starting_job(job)
