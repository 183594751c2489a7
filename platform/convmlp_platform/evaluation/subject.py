"""The subject of an evaluation: a found model.

It has all facts that are needed to build the model, to prepare its images and to name its classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.recipe import AugmentSection
from convmlp_platform.config.sections.section import Channels
from convmlp_platform.config.sections.task_section import TaskSection
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import ConfigError, DataError, PlatformError
from convmlp_platform.models.bundle import BundleSpec
from convmlp_platform.runs.found_model import FoundModel, class_difference
from convmlp_platform.runs.run_folder import stored_identity_fields
from convmlp_platform.training.build.build_transforms import normalisation_of
from data_prep.config import ExifOrientation
from data_prep.dataset.manifest import DatasetManifest

PERMUTED = {"permute", "permute_patch", "permute_seed"}
"""Of `augment`: what holds in evaluation, too."""
PUBLISHED_SIDES = {"detection": 800, "segmentation": 512}
"""Pixels of an image's shorter side, in the papers, where a bare file doesn't say."""


@dataclass(frozen=True)
class Subject:
    """A network by name, its task and classes, and how its images are prepared.

    `classes` is None where nothing says their names: of a bare file, or a checkpoint whose dataset is out of reach.
    """

    found: FoundModel
    name: str
    options: dict[str, Any]
    num_classes: int
    classes: tuple[str, ...] | None
    task: TaskSection
    image_size: int
    crop_pct: float
    interpolation: Literal["bilinear", "bicubic"]
    mean: Channels
    std: Channels
    augment: AugmentSection = field(default_factory=AugmentSection)
    """Of its training: what it says of permuted pixels holds here, too."""
    exif_orientation: ExifOrientation | None = None
    """Of its training data; None where nothing says it."""


def subject_of(job: EvaluateJob, found: FoundModel, manifest: DatasetManifest) -> Subject:
    """The subject that `job` asks for, on `manifest`'s dataset.

    Raises:
        ConfigError: something is missing, contradicts the model, or its classes or task are not the dataset's.
    """
    if found.spec is not None:
        subject = _from_bundle(job, found, found.spec)
    elif found.job is not None:
        subject = _from_training(job, found, found.job, manifest)
    else:
        subject = _from_file(job, found, manifest)
    if subject.task.dataset != manifest.task:
        raise ConfigError(
            f"model.from (={job.model.source}): a model for {subject.task.name} needs a dataset of "
            f"{subject.task.dataset}, the one at data.path (={job.data.path}) is for {manifest.task}"
        )
    _check_classes(job, subject, manifest)
    return subject


def _from_bundle(job: EvaluateJob, found: FoundModel, spec: BundleSpec) -> Subject:
    _refuse_given(job, "the model")
    task = TaskSection.model_validate(spec.task.model_dump(include=set(TaskSection.model_fields)))
    _refuse_other_task(job, task)
    return _prepared(
        job,
        found,
        name=spec.model,
        options=spec.options,
        num_classes=spec.num_classes,
        classes=spec.classes,
        task=task,
        image_size=spec.image_size,
        crop_pct=spec.crop_pct,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        augment=_permuted_as(spec),
        exif_orientation=spec.exif_orientation,
    )


def _permuted_as(spec: BundleSpec) -> AugmentSection:
    permutation = getattr(spec.task, "permutation", None)
    if permutation is None:
        return AugmentSection()
    return AugmentSection(
        permute=permutation.kind, permute_patch=permutation.patch_size, permute_seed=permutation.seed
    )


def _from_training(
    job: EvaluateJob, found: FoundModel, trained: TrainJob, manifest: DatasetManifest
) -> Subject:
    _refuse_given(job, "the run's job")
    _refuse_other_task(job, trained.task)
    source = _training_manifest(found, trained, manifest)
    options = dict(trained.model.options)
    fallback = source or manifest
    mean, std = normalisation_of(trained, fallback)
    return _prepared(
        job,
        found,
        name=trained.model.name,
        options=options,
        num_classes=trained.model.num_classes or fallback.num_classes,
        classes=tuple(source.classes) if source else None,
        task=trained.task,
        image_size=trained.data.image_size,
        crop_pct=trained.eval.crop_pct,
        interpolation=trained.eval.interpolation,
        mean=mean,
        std=std,
        augment=trained.augment,
        exif_orientation=source.exif_orientation if source else None,
    )


def _training_manifest(
    found: FoundModel, trained: TrainJob, manifest: DatasetManifest
) -> DatasetManifest | None:
    """Of the dataset that the model was trained on: this one, or the one where its job found it; None: out of reach."""
    digest = found.lineage.get("init.dataset_digest") or trained.data.digest or _recorded_digest(found)
    if digest == manifest.digest:
        return manifest
    try:
        return open_manifest(trained.data.path, digest)
    except DataError:
        return None


def _recorded_digest(found: FoundModel) -> str | None:
    """Of a checkpoint in its run's folder: the digest of the dataset that the run was started with."""
    try:
        return str(stored_identity_fields(Path(found.location).parents[1])["data.digest"])
    except (PlatformError, KeyError, IndexError):
        return None


def _from_file(job: EvaluateJob, found: FoundModel, manifest: DatasetManifest) -> Subject:
    if job.model.name is None:
        raise ConfigError(
            f"model.name: {job.model.source} is a file of weights, which doesn't say of which network: "
            "give its name (`convmlp models` lists them), and task.name for other tasks than classification"
        )
    import timm

    task = job.task or TaskSection()
    published = timm.get_pretrained_cfg(job.model.name, allow_unregistered=True)
    if published is None:
        raise ConfigError(f"model.name (={job.model.name}): no such network; `convmlp models` lists them")
    size = PUBLISHED_SIDES.get(task.dataset, max(published.input_size[1:]))
    return _prepared(
        job,
        found,
        name=job.model.name,
        options=job.model.options,
        num_classes=job.model.num_classes or manifest.num_classes,
        classes=None,
        task=task,
        image_size=size,
        crop_pct=published.crop_pct,
        interpolation="bilinear" if published.interpolation == "bilinear" else "bicubic",
        mean=published.mean,
        std=published.std,
    )


def _prepared(job: EvaluateJob, found: FoundModel, **own: Any) -> Subject:
    """The subject, with what the job says of its images."""
    names = ("image_size", "crop_pct", "interpolation", "mean", "std")
    given = {name: value for name in names if (value := getattr(job.data, name)) is not None}
    return Subject(found=found, **(own | given))


def _refuse_given(job: EvaluateJob, who: str) -> None:
    defaults = type(job.model).model_fields
    for name in ("name", "num_classes", "options"):
        if getattr(job.model, name) != defaults[name].get_default(call_default_factory=True):
            raise ConfigError(
                f"model.{name}: {who} at model.from (={job.model.source}) says that already: leave it out "
                "(it is for bare files of weights)"
            )


def _refuse_other_task(job: EvaluateJob, own: TaskSection) -> None:
    if job.task is not None and job.task.name != own.name:
        raise ConfigError(
            f"task.name (={job.task.name}): model.from (={job.model.source}) is a model for {own.name}: "
            "leave task out"
        )


def _check_classes(job: EvaluateJob, subject: Subject, manifest: DatasetManifest) -> None:
    if subject.num_classes != manifest.num_classes:
        raise ConfigError(
            f"model.from (={job.model.source}): the model has {subject.num_classes} classes, dataset {manifest.name} "
            f"at data.path (={job.data.path}) has {manifest.num_classes}: evaluate it on a dataset of its own classes"
        )
    if subject.classes is not None and (problem := other_classes(job, subject.classes, manifest)):
        raise ConfigError(problem)


def other_classes(job: EvaluateJob, own: Sequence[str], manifest: DatasetManifest) -> str | None:
    """An error message where the model's classes have other names than the dataset's, or another order; else None."""
    if len(own) != manifest.num_classes or (differs := class_difference(own, manifest.classes)) is None:
        return None
    number, count = differs
    more = f" (and {count - 1} more differ)" if count > 1 else ""
    return (
        f"model.from (={job.model.source}): class {number} of the model is {own[number]!r}, of dataset "
        f"{manifest.name} it is {manifest.classes[number]!r}{more}: evaluate it on a dataset with the same classes in "
        "the same order"
    )
