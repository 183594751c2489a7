"""From a job to its task and the transforms of its images, whatever the task."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convmlp import create_model
from convmlp.mixing import create_mixing
from convmlp.tasks.task import Task
from convmlp.weights import load_pretrained
from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.permutation import derive_key
from convmlp_platform.errors import ConfigError
from data_prep.manifest import DatasetManifest


def build_model(job: TrainJob, num_classes: int) -> nn.Module:
    """The network, with fresh weights that depend on `seed` alone, or those of `model.init_from` (of its backbone, for
    detection and segmentation).

    Raises:
        ConfigError: no such model, options it doesn't take, or weights that don't fit.
    """
    options = dict(job.model.options)
    if job.model.drop_path_rate is not None:
        options["drop_path_rate"] = job.model.drop_path_rate
    weights = None if job.model.init_from is None else resolve(job.model.init_from, "model.init_from")
    torch.manual_seed(derive_key(job.seed, "init") & 0x7FFFFFFFFFFFFFFF)
    try:
        if job.task.name != "classification":
            return with_pyramid(job, num_classes, weights, options)
        model: nn.Module = create_model(
            job.model.name, num_classes=num_classes, image_size=job.data.image_size, **options
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model: {error}") from None
    if weights is not None:
        try:
            load_pretrained(model, weights)
        except (ValueError, OSError) as error:
            raise ConfigError(f"model.init_from: {error}") from None
    return model


def with_pyramid(job: TrainJob, num_classes: int, weights: Any, options: dict[str, Any]) -> nn.Module:
    """The detector or segmenter over the job's network, its backbone's weights from a file or fresh."""
    section = job.task
    options |= {"weights": weights, "pyramid_channels": section.pyramid_channels}
    if section.name == "semantic_fpn":
        from convmlp.tasks.semantic_fpn import create_semantic_fpn

        return create_semantic_fpn(job.model.name, num_classes, **options)
    if section.anchor_scale is not None:
        options["anchor_scale"] = section.anchor_scale
    if section.name == "retinanet":
        from convmlp.tasks.retinanet import create_retinanet

        return create_retinanet(job.model.name, num_classes, **options)
    from convmlp.tasks.mask_rcnn import create_mask_rcnn

    return create_mask_rcnn(job.model.name, num_classes, **options)


def build_task(job: TrainJob, manifest: DatasetManifest) -> Task:
    """Model, loss and metrics.

    Raises:
        ConfigError: the dataset is of another task, or has another number of classes than the head.
    """
    if manifest.task != job.task.dataset:
        raise ConfigError(
            f"task.name (={job.task.name}) needs a dataset of {job.task.dataset}, the one at data.path is for "
            f"{manifest.task}"
        )
    model: Any = build_model(job, job.model.num_classes or manifest.num_classes)
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
    from convmlp.tasks.classification import ClassificationTask

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
