"""From a job to what is done to its images, whatever the task.

`augment.permute`: pixels in another order, the same for every image, in training, evaluation and prediction.
"""

from __future__ import annotations

from typing import Any

from convmlp.transforms.image_transforms import EvalTransform, TrainTransform
from convmlp.transforms.pixel_order import Order, PermutedEvalTransform, PermutedTrainTransform, pixel_order
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.recipe import AugmentSection
from convmlp_platform.config.sections.section import LEAST_STD, Channels
from convmlp_platform.errors import ConfigError
from data_prep.dataset.manifest import DatasetManifest


def order_of(augment: AugmentSection, image_size: int) -> Order | None:
    """The order of pixels that a training job asks for; None: as they are.

    Raises:
        ValueError: images of this size aren't made of whole patches.
    """
    if augment.permute == "none":
        return None
    return pixel_order(
        augment.permute, image_size, image_size, patch_size=augment.permute_patch, seed=augment.permute_seed
    )


def permuted_train(
    augment: AugmentSection, transform: TrainTransform
) -> TrainTransform | PermutedTrainTransform:
    """The transform, followed by the permutation where there is one."""
    order = order_of(augment, transform.size)
    return transform if order is None else PermutedTrainTransform(transform, order)


def permuted_eval(augment: AugmentSection, transform: EvalTransform) -> EvalTransform | PermutedEvalTransform:
    """The transform, followed by the permutation where there is one."""
    order = order_of(augment, transform.size)
    return transform if order is None else PermutedEvalTransform(transform, order)


_DETECTION_SIDES = 1333 / 800
_SEGMENTATION_SIDES = 4


def train_transform_of(job: TrainJob, manifest: DatasetManifest) -> Any:
    """The training transform of the job's task."""
    section, augment, size = job.task, job.augment, job.data.image_size
    mean, std = normalisation_of(job, manifest)
    if section.dataset == "detection":
        from convmlp.transforms.object_transforms import DetectionTrainTransform

        sides = section.short_sides or (size,)
        masks = section.name == "mask_rcnn"
        return DetectionTrainTransform(sides, max_side_of(job), masks=masks, hflip=augment.hflip)
    if section.dataset == "segmentation":
        from convmlp.transforms.label_map_transforms import SegmentationTrainTransform

        return SegmentationTrainTransform(
            size,
            mean=mean,
            short_side=size,
            max_side=max_side_of(job),
            scale=section.scale,
            max_share=section.max_class_share,
            hflip=augment.hflip,
            photometric=section.photometric,
        )
    from convmlp.transforms.image_transforms import train_transform

    transform = train_transform(
        size,
        mean=mean,
        std=std,
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
    return permuted_train(augment, transform)


def eval_transform_of(job: TrainJob, manifest: DatasetManifest) -> Any:
    """The evaluation transform of the job's task."""
    size, (mean, std) = job.data.image_size, normalisation_of(job, manifest)
    if job.task.dataset == "detection":
        from convmlp.transforms.object_transforms import DetectionTransform

        return DetectionTransform((size,), max_side_of(job), masks=job.task.name == "mask_rcnn")
    if job.task.dataset == "segmentation":
        from convmlp.transforms.label_map_transforms import SegmentationEvalTransform

        return SegmentationEvalTransform(size, max_side_of(job))
    from convmlp.transforms.image_transforms import eval_transform

    transform = eval_transform(
        size,
        mean=mean,
        std=std,
        crop_pct=job.eval.crop_pct,
        interpolation=job.eval.interpolation,
    )
    return permuted_eval(job.augment, transform)


def normalisation_of(job: TrainJob, manifest: DatasetManifest) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel, of pixels in 0..1: the job's, or else the dataset's own.

    Raises:
        ConfigError: pixels can't be divided by the dataset's own, because its images are of one colour.
    """
    if job.data.std is None and min(manifest.std) < LEAST_STD:
        raise ConfigError(
            f"data.std: dataset {manifest.name}'s own is {list(manifest.std)}, by which pixels can't be divided: "
            "give data.mean and data.std"
        )
    return job.data.mean or manifest.mean, job.data.std or manifest.std


def max_side_of(job: TrainJob) -> int:
    """Limit of an image's longer side, in pixels, in detection and segmentation."""
    sides = _DETECTION_SIDES if job.task.dataset == "detection" else _SEGMENTATION_SIDES
    return job.task.max_side or round(max(job.data.image_size, *job.task.short_sides, 0) * sides)
