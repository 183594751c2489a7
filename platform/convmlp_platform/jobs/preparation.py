"""The steps after a finished data preparation: pictures of the dataset, and its run in MLflow.

Neither may fail or hold up a job whose dataset is finished: each problem is reported in a line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from convmlp_platform.config.load import flatten
from convmlp_platform.config.schema import PrepareJob
from convmlp_platform.errors import PlatformError
from convmlp_platform.tracking.finished.preparation_record import Preparation, PreparationTracker
from data_prep.annotations.object_report import ODD_OBJECTS_NAME
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.output.output_folder import REJECTED_NAME, exclusive_folder

PICTURES = "pictures"
"""Folder in the dataset's own."""


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
