"""From an evaluation job to its parts: the model with its weights, and the images.

An evaluation seen as the evaluation of a training job, so that both build the same network, read the same images
and compute the same figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from convmlp.tasks.task import Task
from convmlp.weight_files import FileWeights
from convmlp.weights import Misfit, load_pretrained, match_pretrained
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.execution import DataSection, EngineSection, LaunchSection, ModelSection
from convmlp_platform.config.sections.recipe import (
    AugmentSection,
    EvalSection,
    OptimizerSection,
    TrainingSection,
)
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import ConfigError
from convmlp_platform.evaluation.subject import PERMUTED, Subject, other_classes, subject_of
from convmlp_platform.runs.find_model import find_model
from convmlp_platform.runs.found_model import FoundModel
from convmlp_platform.training.build.build_task import build_task
from data_prep.dataset.manifest import DatasetManifest


def as_training(job: EvaluateJob, subject: Subject) -> TrainJob:
    """A training job whose held-out images and model are those of `job`. It is never trained."""
    data, wanted = job.data, job.evaluate
    return TrainJob(
        kind="train",
        name=job.name,
        task=subject.task,
        model=ModelSection(name=subject.name, num_classes=subject.num_classes, options=subject.options),
        data=DataSection(
            path=data.path,
            format=data.format,
            digest=data.digest,
            train_split=data.split,
            eval_split=data.split,
            image_size=subject.image_size,
            mean=subject.mean,
            std=subject.std,
            num_workers=data.num_workers,
            verify=data.verify,
            cache_dir=data.cache_dir,
            cache_bytes=data.cache_bytes,
        ),
        augment=AugmentSection.model_validate(subject.augment.model_dump(include=PERMUTED)),
        eval=EvalSection(
            batch_size=wanted.batch_size, crop_pct=subject.crop_pct, interpolation=subject.interpolation
        ),
        optimizer=OptimizerSection(name="sgd", lr=1.0),  # the engine wants one; it never steps
        training=TrainingSection(
            epochs=1, global_batch_size=wanted.batch_size, micro_batch_size=wanted.batch_size
        ),
        engine=EngineSection(
            precision=wanted.precision, compile=wanted.compile, channels_last=wanted.channels_last
        ),
        launch=LaunchSection(address=job.launch.address, use_gpu=job.launch.use_gpu),
    )


@dataclass(frozen=True)
class Prepared:
    """The parts of a job: its dataset, its model, and a training job whose evaluation is the same."""

    manifest: DatasetManifest
    subject: Subject
    training: TrainJob


def prepared(job: EvaluateJob, into: Path | None = None) -> Prepared:
    """Look up dataset and model of a job whose paths are resolved; no weights are loaded.

    Args:
        into: an empty folder for a model that is downloaded.

    Raises:
        ConfigError, DataError: one of them isn't there, or they don't fit together.
    """
    manifest = open_manifest(job.data.path, job.data.digest)
    subject = subject_of(job, found_model(job, into), manifest)
    return Prepared(manifest, subject, as_training(job, subject))


def found_model(job: EvaluateJob, into: Path | None = None) -> FoundModel:
    """Returns the model that `model.from` names.

    Raises:
        ConfigError: there is no such model.
    """
    try:
        return find_model(job.model.source, job.tracking, into, job.model.weights)
    except ConfigError as error:
        raise ConfigError(f"model.from: {error}") from None


def build_loaded_task(job: EvaluateJob, parts: Prepared, say: Callable[[str], None]) -> Task:
    """Model, loss and metrics, with the found weights, all of them.

    Args:
        say: takes a line on what was chosen or assumed.

    Raises:
        ConfigError: as `check_weights`.
    """
    task = build_task(parts.training, parts.manifest)
    weights, notes = check_weights(job, parts, task.model)
    for line in notes:
        say(line)
    load_pretrained(task.model, weights, note=lambda _said: None)
    return task


def check_weights(job: EvaluateJob, parts: Prepared, model: nn.Module) -> tuple[FileWeights, list[str]]:
    """The found weights, and sentences on what was chosen or assumed. The model may be on "meta".

    Raises:
        ConfigError: they can't be read, aren't this network's, or are for other classes than the dataset's.
    """
    subject, where = parts.subject, f"model.from (={job.model.source})"
    try:
        weights = subject.found.weights()
    except ConfigError as error:
        raise ConfigError(f"model.from: {error}") from None
    if weights.classes is not None and (problem := other_classes(job, weights.classes, parts.manifest)):
        raise ConfigError(problem)
    try:
        report = match_pretrained(model, weights, name=subject.found.pinned)
    except ValueError as error:
        raise ConfigError(
            f"{where}: its weights don't fit {subject.name} for {subject.task.name}: "
            f"{error.brief if isinstance(error, Misfit) else error}"
        ) from None
    if report.backbone_only:
        raise ConfigError(
            f"{where}: it holds a backbone's weights, not those of a whole {subject.task.name}: evaluate what was "
            "trained of it"
        )
    if report.replaced or report.dropped:
        entries = ", ".join(report.replaced or report.dropped)
        raise ConfigError(
            f"{where}: the head in the file ({entries}) has another number of classes than the dataset's "
            f"{parts.manifest.num_classes}: evaluate it on a dataset of its own classes"
        )
    if report.fresh:
        raise ConfigError(
            f"{where}: its weights don't fit {subject.name} for {subject.task.name}: missing: "
            f"{', '.join(report.fresh)}"
        )
    notes = list(report.notes)
    if weights.choice is not None:
        notes[0] += f" (model.weights: {'raw' if weights.is_average else 'ema'} takes the other)"
    if weights.classes is None and subject.classes is None:
        notes.append(
            f"{subject.found.pinned}: the names of its classes are not known: it is assumed that its "
            f"{subject.num_classes} are the dataset's, in the same order"
        )
    return weights, notes
