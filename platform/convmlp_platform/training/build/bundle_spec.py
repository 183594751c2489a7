"""The description of a job's model, which allows its use without the job."""

from __future__ import annotations

from typing import Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.recipe import AugmentSection
from convmlp_platform.models.bundle import BundleSpec
from convmlp_platform.models.task_spec import (
    ClassificationSpec,
    DetectionSpec,
    PermutationSpec,
    SegmentationSpec,
    TaskSpec,
)
from convmlp_platform.training.build.build_transforms import max_side_of, normalisation_of
from data_prep.dataset.manifest import DatasetManifest


def bundle_spec(job: TrainJob, manifest: DatasetManifest, provenance: dict[str, Any]) -> BundleSpec:
    """The description of a model trained by `job` on `manifest`'s dataset."""
    mean, std = normalisation_of(job, manifest)
    return BundleSpec(
        model=job.model.name,
        options=job.model.options,
        num_classes=len(manifest.classes),
        classes=tuple(manifest.classes),
        image_size=job.data.image_size,
        mean=mean,
        std=std,
        crop_pct=job.eval.crop_pct,
        interpolation=job.eval.interpolation,
        exif_orientation=manifest.exif_orientation,
        task=task_spec(job, manifest),
        provenance=provenance,
    )


def task_spec(job: TrainJob, manifest: DatasetManifest) -> TaskSpec:
    """Returns the task settings of the job's model.

    They rebuild the parts around its network, and prepare images for it as the job's evaluation does.
    """
    section = job.task
    if section.name == "classification":
        return ClassificationSpec(permutation=_permutation(job.augment))
    channels, side = section.pyramid_channels, max_side_of(job)
    if section.name == "semantic_fpn":
        return SegmentationSpec(pyramid_channels=channels, max_side=side)
    from convmlp.tasks.heads import ANCHOR_SCALES

    return DetectionSpec(
        name=section.name,
        pyramid_channels=channels,
        max_side=side,
        anchor_scale=section.anchor_scale or ANCHOR_SCALES[section.name],
        class_ids=tuple(manifest.class_ids or range(manifest.num_classes)),
    )


def _permutation(augment: AugmentSection) -> PermutationSpec | None:
    if augment.permute == "none":
        return None
    return PermutationSpec(kind=augment.permute, patch_size=augment.permute_patch, seed=augment.permute_seed)
