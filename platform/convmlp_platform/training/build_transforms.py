"""From a job to what is done to its images, whatever the task."""

from __future__ import annotations

from typing import Any

from convmlp_platform.config.schema import TrainJob
from data_prep.manifest import DatasetManifest

_DETECTION_SIDES = 1333 / 800
_SEGMENTATION_SIDES = 4


def train_transform_of(job: TrainJob, manifest: DatasetManifest) -> Any:
    """The training transform of the job's task."""
    section, augment, size = job.task, job.augment, job.data.image_size
    if section.dataset == "detection":
        from convmlp.detection_transforms import DetectionTrainTransform

        sides = section.short_sides or (size,)
        masks = section.name == "mask_rcnn"
        return DetectionTrainTransform(sides, _max_side(job), masks=masks, hflip=augment.hflip)
    if section.dataset == "segmentation":
        from convmlp.segmentation_transforms import SegmentationTrainTransform

        return SegmentationTrainTransform(
            size,
            mean=manifest.mean,
            short_side=size,
            max_side=_max_side(job),
            scale=section.scale,
            max_share=section.max_class_share,
            hflip=augment.hflip,
            photometric=section.photometric,
        )
    from convmlp.transforms import train_transform

    return train_transform(
        size,
        mean=manifest.mean,
        std=manifest.std,
        scale=augment.scale,
        ratio=augment.ratio,
        interpolation=augment.interpolation,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter,
        rand_augment=augment.rand_augment,
        random_erasing=augment.random_erasing,
        crop=augment.crop,
        pad=augment.pad,
    )


def eval_transform_of(job: TrainJob, manifest: DatasetManifest) -> Any:
    """The evaluation transform of the job's task."""
    size = job.data.image_size
    if job.task.dataset == "detection":
        from convmlp.detection_transforms import DetectionTransform

        return DetectionTransform((size,), _max_side(job), masks=job.task.name == "mask_rcnn")
    if job.task.dataset == "segmentation":
        from convmlp.segmentation_transforms import SegmentationEvalTransform

        return SegmentationEvalTransform(size, _max_side(job))
    from convmlp.transforms import eval_transform

    return eval_transform(
        size,
        mean=manifest.mean,
        std=manifest.std,
        crop_pct=job.eval.crop_pct,
        interpolation=job.eval.interpolation,
    )


def _max_side(job: TrainJob) -> int:
    sides = _DETECTION_SIDES if job.task.dataset == "detection" else _SEGMENTATION_SIDES
    return job.task.max_side or round(max(job.data.image_size, *job.task.short_sides, 0) * sides)
