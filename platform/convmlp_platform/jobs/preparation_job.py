"""A data preparation, on a Ray cluster or in this process; then pictures of the dataset, and its run in MLflow.

Neither of these may fail or hold up a job whose dataset is finished: each problem is reported in a line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convmlp_platform.config.load import flatten
from convmlp_platform.config.schema import PrepareJob
from convmlp_platform.errors import DataError, PlatformError
from convmlp_platform.tracking.finished_work import Preparation, PreparationTracker
from data_prep import console
from data_prep.annotations.object_report import ODD_OBJECTS_NAME
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.output_folder import REJECTED_NAME, exclusive_folder

PICTURES = "pictures"
"""Folder in the dataset's own."""


def prepare_dataset(job: PrepareJob, *, use_ray: bool) -> int:
    """Prepare the dataset of a job whose paths are resolved, draw it and log it; returns the exit code.

    Raises:
        DataError: see `data_prep.prepare.prepare`.
        LaunchError: the cluster can't be reached.
    """
    try:
        manifest, seconds = _prepare_on_ray(job) if use_ray else _timed_prepare(job)
    except DataPrepError as error:
        raise DataError(str(error)) from error
    if console.is_quiet():
        from data_prep.summary import describe

        console.say_result(f"{job.output.path}: {describe(manifest)}")
    record(job, manifest, seconds, console.say)
    return 0


def _prepare_on_ray(job: PrepareJob) -> tuple[DatasetManifest, float | None]:
    from convmlp_platform.launch.cluster.connect import connect
    from convmlp_platform.launch.cluster.worker_environment import shared_env_vars

    with connect(job.launch.address, shared_env_vars(threads=1)):
        from data_prep.shards.runner import ray_map

        return _timed_prepare(job, map_shards=ray_map)


def _timed_prepare(job: PrepareJob, **options: Any) -> tuple[DatasetManifest, float | None]:
    """The dataset's manifest, and the seconds it took; None where the dataset was finished before."""
    from data_prep.prepare import prepare

    before, started = _stamp(job), time.monotonic()
    manifest = prepare(job.preparation, progress=console.say, **options)
    return manifest, None if _stamp(job) == before else time.monotonic() - started


def _stamp(job: PrepareJob) -> tuple[int, int] | None:
    """Changes when the job writes its dataset's manifest, and stays where the dataset was finished before."""
    try:
        status = (job.output.path / MANIFEST_NAME).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def record(
    job: PrepareJob, manifest: DatasetManifest, seconds: float | None, say: Callable[[str], None]
) -> None:
    """Draw every split and log the preparation, once for a job and dataset.

    Args:
        job: with resolved paths.
        manifest: of the finished dataset.
        seconds: how long the preparation took; None where it was finished before.
        say: gets a line for each thing the user should know.
    """
    folder = job.output.path
    listed = (REJECTED_NAME, ODD_OBJECTS_NAME)
    artifacts = (*((folder / name, "") for name in listed), (folder / PICTURES, PICTURES))
    preparation = Preparation(job.name, flatten(job), folder, manifest, seconds, artifacts)
    tracker = PreparationTracker(job.tracking, preparation)
    try:
        if run_id := tracker.logged_run():
            say(f"  tracking  MLflow has it already: run {run_id}")
            return
        with exclusive_folder(folder):
            if not tracker.is_recorded:
                _draw(folder, manifest, say)
                tracker.record(preparation)
            run_id = tracker.send()
        say(f"  tracking  MLflow run {run_id} in experiment {job.tracking.experiment}")
    except (PlatformError, DataPrepError) as error:
        say(f"  tracking  {error}")


def _draw(folder: Path, manifest: DatasetManifest, say: Callable[[str], None]) -> None:
    from convmlp_platform.show.show_dataset import show

    try:
        for split in manifest.splits:
            show(str(folder), folder / PICTURES, split=split)
    except Exception as error:  # a picture is no reason to fail a finished preparation
        say(f"  pictures  can't be drawn: {type(error).__name__}: {error}")
    else:
        say(f"  pictures  {folder / PICTURES}")
