"""Images too small for a network, or of a size it can't take: told before any worker starts, with a size that works."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.training.build.build_transforms import train_transform_of
from convmlp_platform.training.preflight.memory import build_on_meta
from data_prep.dataset.manifest import DatasetManifest

_COARSE, _FINE, _LARGEST = 32, 8, 512
_ERRORS = (ValueError, RuntimeError, AssertionError, TypeError)


def size_refused(job: TrainJob, num_classes: int) -> str | None:
    """Of classification, why the network can't take `data.image_size`, and a size that it takes; None: some other
    thing is wrong with it, or nothing.

    Networks differ: ConvMLP takes images of any size, CycleMLP from 3 pixels, ResNet and RegNet any, Mixer and the
    pure MLP one size that is a multiple of their patches, ViT whole patches. So it is tried, without memory for
    tensors: a second or two a size.
    """
    size = job.data.image_size
    if job.task.dataset != "classification" or (reason := _refusal(job, num_classes, size)) is None:
        return None
    larger = _larger_size(job, num_classes)
    if larger is None:
        return None
    return (
        f"data.image_size (={size}): {job.model.name} can't take images of {size} x {size} pixels: {reason}; "
        f"{larger} pixels work"
    )


def single_value(job: TrainJob, num_classes: int) -> str | None:
    """Whether BatchNorm would get one value a channel, of which it can't train: one tiny image a micro-batch."""
    size, name = job.data.image_size, job.model.name
    if job.training.micro_batch_size > 1 or job.task.dataset != "classification":
        return None
    if _refusal(job, num_classes, size, batch=1) is None:
        return None
    return (
        f"training.micro_batch_size (=1): BatchNorm of {name} would see a single value a channel in images of "
        f"{size} x {size} pixels (data.image_size): set 2 or more"
    )


def sides_refused(job: TrainJob, manifest: DatasetManifest) -> str | None:
    """Of detection and segmentation, what is wrong with the sizes that images are brought to."""
    if job.task.dataset == "classification":
        return None
    from convmlp.transforms.object_transforms import SMALLEST_SIDE

    size = job.data.image_size
    if size < SMALLEST_SIDE:
        return (
            f"data.image_size (={size}): {job.task.name} needs images of {SMALLEST_SIDE} pixels at least, the stride "
            f"of the network's last feature map: set {SMALLEST_SIDE} or more"
        )
    try:
        train_transform_of(job, manifest)
    except ValueError as error:
        return f"task.max_side, task.short_sides, data.image_size (={size}): {error}"
    return None


def _refusal(job: TrainJob, num_classes: int, size: int, batch: int = 2) -> str | None:
    """Returns the reason why the network can't train on images of this size; None if it can."""
    try:
        model: nn.Module = build_on_meta(_with_size(job, size), num_classes)
        model.train()
        model(torch.empty(batch, 3, size, size, device="meta"))
    except _ERRORS as error:
        return _plain(error)
    return None


def _larger_size(job: TrainJob, num_classes: int) -> int | None:
    """The smallest larger size, in steps of 8 pixels, that the network takes; None: there is none."""
    first = job.data.image_size + 1
    coarse = range(-(-first // _COARSE) * _COARSE, _LARGEST + 1, _COARSE)
    works = next((size for size in coarse if _refusal(job, num_classes, size) is None), None)
    if works is None:
        return None
    fine = range(max(-(-first // _FINE) * _FINE, works - _COARSE + _FINE), works, _FINE)
    return next((size for size in fine if _refusal(job, num_classes, size) is None), works)


def _with_size(job: TrainJob, size: int) -> TrainJob:
    return job.model_copy(update={"data": job.data.model_copy(update={"image_size": size})})


def _plain(error: Exception) -> str:
    """The first sentence of an error, which torch follows with stack traces."""
    text: Any = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return str(text).strip().rstrip(".")
