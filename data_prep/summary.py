"""From finished shards to the manifest: counts, pixel statistics and the dataset digest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.config import PrepareConfig
from data_prep.digest import dataset_digest
from data_prep.errors import DataPrepError
from data_prep.index import read_index
from data_prep.manifest import DatasetManifest, SplitInfo, Task
from data_prep.notes import dataset_notes, mask_notes
from data_prep.object_report import sum_objects
from data_prep.plan import Plan, encoder_versions, recorded_settings
from data_prep.shard import ShardRecord
from data_prep.source_config import ExifOrientation, exif_orientation

Channels = tuple[float, float, float]


def build_manifest(
    config: PrepareConfig, output: Path, plan: Plan, records: Sequence[ShardRecord]
) -> DatasetManifest:
    """The manifest of a finished job.

    Args:
        config: the job as given, whose relative paths are recorded as they are.
        output: the dataset's folder.
        plan: its samples and shards.
        records: all shards, sorted by split and number.

    Raises:
        DataPrepError: every sample of a split was rejected.
    """
    splits = {split: _split_info(split, records) for split in sorted({task.split for task in plan.tasks})}
    mean, std = channel_statistics(np.sum([record.histogram for record in records], axis=0))
    first_format = sorted(config.output.formats)[0]
    indexes = {
        name: [read_index(output / shard.index) for shard in split.formats[first_format]]
        for name, split in splits.items()
    }
    orientation = exif_orientation(config.source)
    oriented = sum(record.num_oriented for record in records)
    digest = dataset_digest(plan.classes, indexes, num_turned=oriented if orientation == "apply" else 0)
    notes = [
        *plan.notes,
        *_orientation_note(plan.task, orientation, oriented),
        *dataset_notes(plan.task, plan.classes, indexes),
        *(mask_notes(plan.classes, _mask_values(records)) if plan.task == "segmentation" else ()),
    ]
    return DatasetManifest(
        name=output.name,
        task=plan.task,
        classes=plan.classes,
        class_ids=plan.class_ids,
        splits=splits,
        mean=mean,
        std=std,
        source=config.source.model_dump(mode="json"),
        preprocessing={
            **recorded_settings(config),
            "exif_orientation": orientation,
            **({"num_oriented": oriented} if oriented else {}),
            "num_rejected": sum(len(record.rejected) for record in records),
            **_objects(plan, records),
            **({"notes": notes} if notes else {}),
            "listing": plan.listing,
            **encoder_versions(),
        },
        digest=digest,
    )


def _orientation_note(task: Task, orientation: ExifOrientation, count: int) -> list[str]:
    if not count:
        return []
    if orientation == "ignore":
        return [
            f"{count:,} images have an EXIF orientation and are taken as they are stored, not upright "
            "(source.exif_orientation: ignore)"
        ]
    note = f"{count:,} images are turned upright by their EXIF orientation"
    if task == "classification":
        return [note]
    what = "boxes and masks" if task == "detection" else "masks"
    return [
        f"{note}, and their {what} are taken as drawn on upright images; where they were drawn on the pixels as "
        "stored, set source.exif_orientation: ignore"
    ]


def _mask_values(records: Sequence[ShardRecord]) -> dict[str, set[int]]:
    values: dict[str, set[int]] = {}
    for record in records:
        values.setdefault(record.split, set()).update(record.mask_values)
    return values


def _objects(plan: Plan, records: Sequence[ShardRecord]) -> dict[str, dict[str, int]]:
    """Of detection: what there is to say of annotated objects."""
    if plan.task != "detection":
        return {}
    return {"objects": sum_objects(record.objects for record in records).model_dump()}


def describe(manifest: DatasetManifest) -> str:
    """One line: samples, classes, formats, digest."""
    counts = ", ".join(f"{split.num_samples:,} {name}" for name, split in manifest.splits.items())
    rejected = manifest.preprocessing.get("num_rejected", 0)
    return (
        f"{counts} samples in {manifest.num_classes:,} classes as {' and '.join(manifest.formats)}, "
        f"{rejected} rejected, {manifest.digest}"
    )


def channel_statistics(histogram: NDArray[np.int64]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of R, G and B on a 0..1 scale.

    Args:
        histogram: counts of values 0..255, shape (3, 256). Counts are exact, so the result depends
            neither on the order of samples nor on where shards are cut.
    """
    values = np.arange(256) / 255
    total = np.maximum(histogram.sum(axis=1), 1)
    mean = histogram @ values / total
    variance = histogram @ values**2 / total - mean**2
    return _rounded(mean), _rounded(np.sqrt(np.maximum(variance, 0)))


def _rounded(values: NDArray[np.float64]) -> Channels:
    red, green, blue = (round(float(value), 6) for value in values)  # last bits differ between BLAS builds
    return red, green, blue


def _split_info(split: str, records: Sequence[ShardRecord]) -> SplitInfo:
    own = [record for record in records if record.split == split and record.shards]
    if not own:
        raise DataPrepError(f"every image of split {split!r} was rejected")
    return SplitInfo(
        num_samples=sum(record.num_samples for record in own),
        formats={name: [record.shards[name] for record in own] for name in sorted(own[0].shards)},
    )
