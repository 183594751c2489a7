"""From a job to its task and the transforms of its images, whatever the task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convmlp import create_model
from convmlp.optim import OPTIMIZERS
from convmlp.tasks.task import Task
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.recipe import OptimizerSection
from convmlp_platform.data.sample_order import derive_key
from convmlp_platform.errors import ConfigError
from convmlp_platform.training.build.initial_weights import load_initial
from data_prep.dataset.manifest import DatasetManifest


def build_model(job: TrainJob, num_classes: int, manifest: DatasetManifest | None = None) -> nn.Module:
    """The network, with fresh weights that depend on `seed` alone, or those of `model.init_from` (see
    `training.build.initial_weights`, which compares their classes with those of `manifest`).

    Raises:
        ConfigError: no such model, options it doesn't take, or weights that don't fit.
    """
    options = dict(job.model.options)
    if job.model.drop_path_rate is not None:
        options["drop_path_rate"] = job.model.drop_path_rate
    torch.manual_seed(derive_key(job.seed, "init") & 0x7FFFFFFFFFFFFFFF)
    try:
        if job.task.name != "classification":
            model = with_pyramid(job, num_classes, options)
        else:
            model = create_model(
                job.model.name, num_classes=num_classes, image_size=job.data.image_size, **options
            )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model: {error}") from None
    load_initial(model, job, manifest)
    return model


def with_pyramid(job: TrainJob, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """The detector or segmenter over the job's network, with fresh weights."""
    from convmlp.tasks.heads import create_dense_model

    section = job.task
    return create_dense_model(
        section.name,
        job.model.name,
        num_classes,
        pyramid_channels=section.pyramid_channels,
        anchor_scale=section.anchor_scale,
        **options,
    )


def task_mismatch(job: TrainJob, manifest: DatasetManifest) -> str | None:
    """Returns an error message if the dataset is not for the job's task; None if it is."""
    if manifest.task == job.task.dataset:
        return None
    return (
        f"task.name (={job.task.name}) needs a dataset of {job.task.dataset}, the one at data.path is for "
        f"{manifest.task}"
    )


def optimizer_options(section: OptimizerSection) -> dict[str, Any]:
    """Name, decay and the options that this optimizer takes: arguments of `create_optimizer`, without the rates."""
    name = "momentum" if section.name == "sgd" and not section.nesterov else section.name
    options = {"betas": section.betas, "eps": section.eps, "momentum": section.momentum}
    taken = {option: value for option, value in options.items() if option in OPTIMIZERS[name]}
    return {"name": name, "decay": section.decay, **taken}


def build_task(job: TrainJob, manifest: DatasetManifest) -> Task:
    """Model, loss and metrics.

    Raises:
        ConfigError: the dataset is of another task, or has another number of classes than the head.
    """
    if (mismatch := task_mismatch(job, manifest)) is not None:
        raise ConfigError(mismatch)
    model: Any = build_model(job, job.model.num_classes or manifest.num_classes, manifest)
    try:
        if job.task.dataset == "detection":
            from convmlp.tasks.detection import DetectionTask

            return DetectionTask(model, manifest.class_ids or range(manifest.num_classes))
        if job.task.dataset == "segmentation":
            from convmlp.tasks.segmentation import SegmentationTask

            return SegmentationTask(model, manifest.num_classes)
        return _classification(job, model, manifest.num_classes)
    except ValueError as error:
        raise ConfigError(f"model.num_classes: {error}") from None


def _classification(job: TrainJob, model: nn.Module, num_classes: int) -> Task:
    from convmlp.tasks.classification import ClassificationTask, create_mixing

    augment = job.augment
    mixing = create_mixing(
        num_classes,
        mixup=augment.mixup,
        cutmix=augment.cutmix,
        prob=augment.mix_prob,
        switch_prob=augment.mix_switch_prob,
        label_smoothing=job.loss.label_smoothing,
    )
    return ClassificationTask(
        model, num_classes=num_classes, label_smoothing=job.loss.label_smoothing, mixing=mixing
    )
