"""From finished shards to the manifest: counts, pixel statistics and the dataset digest.

Notes on a dataset that a person would want before training on it: each is a line, none is an error.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.annotations.object_report import sum_objects
from data_prep.config import ExifOrientation, PrepareConfig, exif_orientation
from data_prep.dataset.checksums import dataset_digest
from data_prep.dataset.index import ShardIndex, read_index
from data_prep.dataset.manifest import DatasetManifest, SplitInfo, Task
from data_prep.errors import DataPrepError
from data_prep.shards.shard import ShardRecord
from data_prep.shards.shard_plan import Plan, encoder_versions, recorded_settings

_SHOWN = 3
_FEW = 10
"""Images of a class, below which a line says so."""


@dataclass(frozen=True)
class _Samples:
    """All samples of a dataset: of each its split's number, key, label and the hash of its source."""

    splits: list[str]
    split: NDArray[np.int64]
    keys: list[str]
    label: NDArray[np.int64]
    hashes: NDArray[np.void]

    def name(self, sample: int) -> str:
        """`train/class_0/image_1`."""
        return f"{self.splits[int(self.split[sample])]}/{self.keys[sample]}"


def dataset_notes(
    task: Task, classes: Sequence[str], indexes: Mapping[str, Sequence[ShardIndex]]
) -> list[str]:
    """Identical images of several splits or classes; classes of one split alone, or of few images.

    Images are identical where their bytes are, and those of their annotations.

    Args:
        task: only classification has a label for the image.
        classes: names by label.
        indexes: of every split, the indexes of its shards in one format.
    """
    samples = _collected(indexes)
    notes = [*_twins(samples, task), *_name_notes(classes)]
    if task == "classification":
        notes += _class_notes(samples, classes)
    return notes


def mask_notes(classes: Sequence[str], values: Mapping[str, Collection[int]]) -> list[str]:
    """Classes that no mask has, and masks that seem to number their classes from 0.

    Args:
        classes: names by label; value k of a mask is label k - 1, and 0 is ignored.
        values: split → the values that occur in its masks.
    """
    notes = []
    for split, found in sorted(values.items()):
        absent = [label for label in range(len(classes)) if label + 1 not in found]
        if absent:
            notes.append(
                f"{len(absent):,} of {len(classes):,} classes occur in no mask of {split}: "
                f"{_named(np.array(absent), classes)}"
            )
    everything = set().union(*values.values())
    if 0 in everything and len(classes) not in everything and everything != {0}:
        notes.append(
            f"masks have the value 0, which is ignored, and none has {len(classes)}, the last class "
            f"({classes[-1]}): if they number classes from 0, each is taken for its neighbour; add 1 to all values"
        )
    return notes


def _collected(indexes: Mapping[str, Sequence[ShardIndex]]) -> _Samples:
    splits = sorted(indexes)
    parts = [(number, index) for number, split in enumerate(splits) for index in indexes[split]]
    hashes = np.concatenate([np.ascontiguousarray(index.source_hash) for _, index in parts])
    return _Samples(
        splits,
        np.concatenate([np.full(len(index.label), number, np.int64) for number, index in parts]),
        [key for _, index in parts for key in index.keys.to_pylist()],
        np.concatenate([index.label.astype(np.int64) for _, index in parts]),
        hashes.view(np.dtype((np.void, hashes.shape[1]))).ravel(),
    )


def _twins(samples: _Samples, task: Task) -> Iterator[str]:
    _, image, uses = np.unique(samples.hashes, return_inverse=True, return_counts=True)
    order = np.argsort(image, kind="stable")
    order = order[uses[image[order]] > 1]
    groups = np.split(order, np.flatnonzero(np.diff(image[order])) + 1) if len(order) else []
    across = [group for group in groups if len(np.unique(samples.split[group])) > 1]
    if across:
        copies = sum(len(group) for group in across)
        yield (
            f"{copies:,} images stand in several splits as the same bytes, so that evaluation sees what was trained: "
            f"{_shown(samples, across)}"
        )
    mixed = [group for group in groups if len(np.unique(samples.label[group])) > 1]
    if mixed and task == "classification":
        copies = sum(len(group) for group in mixed)
        yield f"{copies:,} images have several classes as the same bytes: {_shown(samples, mixed)}"
    same = [group for group in groups if len(np.unique(samples.split[group])) == 1]
    if same:
        copies = sum(len(group) - 1 for group in same)
        yield f"{copies:,} images are copies of another in their split: {_shown(samples, same)}"


def _class_notes(samples: _Samples, classes: Sequence[str]) -> Iterator[str]:
    counts = {
        split: np.bincount(samples.label[samples.split == number], minlength=len(classes))
        for number, split in enumerate(samples.splits)
    }
    for split, found in counts.items():
        others = np.sum([count for name, count in counts.items() if name != split], axis=0)
        only = np.flatnonzero((found > 0) & (others == 0))
        if len(only) and len(counts) > 1:
            yield f"{len(only):,} classes occur in {split} only: {_named(only, classes)}"
    reference = "train" if "train" in counts else samples.splits[0]
    few = np.flatnonzero((counts[reference] > 0) & (counts[reference] < _FEW))
    if len(few):
        yield f"{len(few):,} classes have fewer than {_FEW} images in {reference}: {_named(few, classes)}"


def _name_notes(classes: Sequence[str]) -> Iterator[str]:
    alike = defaultdict(list)
    for name in classes:
        alike["".join(unicodedata.normalize("NFC", name).casefold().split())].append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if groups:
        named = "; ".join(" = ".join(map(repr, names[:_SHOWN])) for names in groups[:_SHOWN])
        yield (
            f"{sum(map(len, groups)):,} classes differ in capitals, blanks or nothing from another: {named}"
            f"{'; ...' * (len(groups) > _SHOWN)}"
        )


def _named(labels: NDArray[np.intp], classes: Sequence[str]) -> str:
    return ", ".join(classes[label] for label in labels[:_SHOWN].tolist()) + ", ..." * (len(labels) > _SHOWN)


def _shown(samples: _Samples, groups: Sequence[NDArray[np.intp]]) -> str:
    named = sorted(sorted(map(samples.name, group.tolist()))[:_SHOWN] for group in groups)
    return "; ".join(" = ".join(names) for names in named[:_SHOWN]) + "; ..." * (len(groups) > _SHOWN)


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
