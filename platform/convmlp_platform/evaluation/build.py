"""From an evaluation job to its parts: the model with its weights, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convmlp.tasks.task import Task
from convmlp.weights import load_pretrained
from convmlp_platform.config.evaluate import EvaluateJob
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.split import open_manifest
from convmlp_platform.errors import ConfigError
from convmlp_platform.evaluation.as_training import as_training
from convmlp_platform.evaluation.subject import Subject, subject_of
from convmlp_platform.training.build_task import build_task
from convmlp_platform.training.model_source import FoundModel, find_model
from data_prep.manifest import DatasetManifest

_SHOWN = 5


@dataclass(frozen=True)
class Prepared:
    """What a job means: its dataset, its model, and the training job that would evaluate so."""

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
    """What `model.from` names.

    Raises:
        ConfigError: there is no such model.
    """
    try:
        return find_model(job.model.source, job.tracking, into)
    except ConfigError as error:
        raise ConfigError(f"model.from: {error}") from None


def build_loaded_task(job: EvaluateJob, parts: Prepared) -> Task:
    """Model, loss and metrics, with the found weights, all of them.

    Raises:
        ConfigError: the weights are not this network's, or those of another number of classes.
    """
    task = build_task(parts.training, parts.manifest)
    subject = parts.subject
    if subject.found.kind == "file" and subject.task.name == "classification":
        _load_published(job, task, Path(subject.found.location))
        return task
    problems = _problems(task, subject)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(
            f"model.from (={job.model.source}): its weights don't fit {subject.name} for {subject.task.name}: "
            + "; ".join(problems[:_SHOWN])
            + more
        )
    return task


def _load_published(job: EvaluateJob, task: Task, file: Path) -> None:
    try:
        report = load_pretrained(task.model, file)
    except ValueError as error:
        raise ConfigError(f"model.from: {error}") from None
    if report.replaced or report.dropped:
        entries = ", ".join(report.replaced or report.dropped)
        raise ConfigError(
            f"model.from (={job.model.source}): the head in the file ({entries}) has another number of classes than "
            f"the dataset's {task.num_classes}: evaluate it on a dataset of its own classes"
        )


def _problems(task: Task, subject: Subject) -> list[str]:
    """Load the weights if they all fit; otherwise what doesn't."""
    own, given = task.model.state_dict(), subject.found.state_dict()
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in own]
    problems += [
        f"{name} is {list(given[name].shape)}, not {list(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    if not problems:
        task.model.load_state_dict(given)
    return problems
