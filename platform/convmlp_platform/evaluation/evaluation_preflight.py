"""All that can be known to be wrong with an evaluation before it costs anything."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from convmlp.transforms.pixel_order import pixel_order
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.storage.storage import check_remote_shards, shards_of
from convmlp_platform.errors import ConfigError
from convmlp_platform.evaluation.build_subject import Prepared, check_weights, found_model, prepared
from convmlp_platform.evaluation.extra_figures import NUM_CLASSES, place_of, read_real_labels
from convmlp_platform.evaluation.result import is_result
from convmlp_platform.evaluation.subject import Subject
from convmlp_platform.training.preflight.image_size import sides_refused, size_refused
from convmlp_platform.training.preflight.memory import build_on_meta
from convmlp_platform.training.preflight.preparation_preflight import (
    PreflightReport,
    check_compiler,
    check_writable,
    make_checks,
)
from data_prep.dataset.manifest import DatasetManifest
from data_prep.storage.urls import local_path


def preflight_evaluation(job: EvaluateJob) -> PreflightReport:
    """Check a job whose paths are resolved; every check is made."""
    report = PreflightReport()
    with tempfile.TemporaryDirectory(prefix="convmlp-model-") as downloads:
        make_checks(_checks(job, report, Path(downloads)), report)
    return report


def _checks(job: EvaluateJob, report: PreflightReport, downloads: Path) -> Iterator[Callable[[], None]]:
    manifest: DatasetManifest | None = None
    parts: Prepared | None = None

    def dataset() -> None:
        nonlocal manifest
        manifest = open_manifest(job.data.path, job.data.digest)
        _check_images(job, manifest, report)

    def model() -> None:
        nonlocal parts
        if manifest is None:
            found_model(job, downloads)
            return
        parts = prepared(job, downloads)
        report.summary.append(f"model    {parts.subject.found}")
        _check_network(job, parts, report)

    yield dataset
    yield model
    if manifest is not None:
        known = manifest
        yield lambda: _check_real(job, known)
    if parts is not None:
        found = parts
        yield lambda: _check_permutation(job, found)
    if job.evaluate.compile:
        yield lambda: check_compiler("evaluate.compile", job.launch.use_gpu, report)
    yield lambda: _check_output(job, report)


def _check_images(job: EvaluateJob, manifest: DatasetManifest, report: PreflightReport) -> None:
    split = job.data.split
    if (lack := manifest.lacks(split)) is not None:
        raise ConfigError(f"data.split: the dataset at {job.data.path} {lack}")
    count = manifest.splits[split].num_samples
    report.summary.append(
        f"data     {manifest.name}: {count:,} {split} images for {manifest.task}, {manifest.num_classes:,} classes, "
        f"{job.data.format}, {manifest.digest[:19]}…"
    )
    folder = local_path(job.data.path)
    if folder is None:
        report.problems += check_remote_shards(job.data.path, shards_of(manifest, split, job.data.format))
    else:
        ShardedSplit(str(folder), manifest, split, job.data.format).check_files()


def _check_network(job: EvaluateJob, parts: Prepared, report: PreflightReport) -> None:
    subject = parts.subject
    try:
        network = build_on_meta(parts.training, subject.num_classes)
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"model.name (={subject.name}): {' '.join(str(error).split())}") from None
    parameters = sum(parameter.numel() for parameter in network.parameters())
    report.summary.append(
        f"network  {subject.name} for {subject.task.name}: {parameters:,} parameters, images of {subject.image_size} px"
    )
    report.summary += [f"         {note}" for note in _other_view(subject, parts.manifest)]
    try:
        report.summary += [f"         {note}" for note in check_weights(job, parts, network)[1]]
    except ConfigError as error:
        report.problems += str(error).splitlines()
    refused = sides_refused(parts.training, parts.manifest)
    if refused or (refused := size_refused(parts.training, subject.num_classes)):
        raise ConfigError(refused)


def _other_view(subject: Subject, manifest: DatasetManifest) -> Iterator[str]:
    """A line where the model was trained on photos of another way up than the dataset's are."""
    count = int(manifest.preprocessing.get("num_oriented", 0))
    if count and subject.exif_orientation not in (None, manifest.exif_orientation):
        views = {"apply": "turned upright", "ignore": "as they are stored"}
        yield (
            f"the model was trained on images {views[subject.exif_orientation]}, {count:,} of this dataset "
            f"are {views[manifest.exif_orientation]} (source.exif_orientation of its preparation)"
        )


def _check_real(job: EvaluateJob, manifest: DatasetManifest) -> None:
    if job.evaluate.real_labels is None:
        return
    if manifest.task != "classification" or manifest.num_classes != NUM_CLASSES:
        raise ConfigError(
            f"evaluate.real_labels: ReaL labels are for ImageNet's {NUM_CLASSES:,} classes; the dataset at data.path "
            f"is for {manifest.task} with {manifest.num_classes:,}"
        )
    read_real_labels(Path(job.evaluate.real_labels))
    folder = local_path(job.data.path)
    if folder is not None and job.data.split in manifest.splits:
        place_of(ShardedSplit(str(folder), manifest, job.data.split, job.data.format).key(0))


def _check_permutation(job: EvaluateJob, parts: Prepared) -> None:
    section, size = job.evaluate.permutation, parts.subject.image_size
    if section.kinds and parts.manifest.task != "classification":
        raise ConfigError(
            f"evaluate.permutation.kinds: for classification; the dataset at data.path is for {parts.manifest.task}"
        )
    if "patches" in section.kinds:
        try:
            pixel_order("patches", size, size, patch_size=section.patch_size)
        except ValueError as error:
            raise ConfigError(f"evaluate.permutation.patch_size (={section.patch_size}): {error}") from None


def _check_output(job: EvaluateJob, report: PreflightReport) -> None:
    from convmlp_platform.tracking.mlflow.tracking_uri import check_tracking

    check_writable(job.output.path, "output.path", report)
    report.problems += check_tracking(job.tracking)
    folder = Path(job.output.path) / job.name
    there = " (takes the place of an earlier result)" if is_result(folder) else ""
    report.summary.append(f"result   {folder}{there}; MLflow experiment {job.tracking.experiment}")
