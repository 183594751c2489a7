"""One split of a prepared dataset seen through its task: which classes a sample holds, and how it is drawn.

A split's index columns over all its shards: what can be known of its samples without reading an image.

The known truth of a stored sample, as plain arrays, which pictures and comparisons need.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.storage.block_cache import CacheOptions
from convmlp_platform.data.storage.storage import open_storage
from convmlp_platform.pictures.annotate import draw_classes, draw_objects, resized
from convmlp_platform.pictures.contact_sheet import Cell, fit
from convmlp_platform.pictures.predictions import DrawnObjects
from convmlp_platform.pictures.style import Color, class_color
from data_prep.annotations.annotations import Detection, parse_detection
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import RejectedSample
from data_prep.images.masks import read_mask


@dataclass(frozen=True)
class Columns:
    """Arrays of shape (samples,), in stored order."""

    label: NDArray[np.int32]
    """-1 where the task has no label for the whole image."""
    height: NDArray[np.int32]
    width: NDArray[np.int32]


def read_columns(split: ShardedSplit) -> Columns:
    """The columns of all shards.

    Raises:
        DataError: an index is missing or damaged.
    """
    indexes = [split.index(number) for number in range(len(split.shards))]
    return Columns(
        label=np.concatenate([index.label for index in indexes]),
        height=np.concatenate([index.height for index in indexes]),
        width=np.concatenate([index.width for index in indexes]),
    )


Truth = int | DrawnObjects | NDArray[np.int16]
"""By the dataset's task: a label; objects; labels by pixel, shape (height, width), -1 where nothing is labelled."""


def truth_of(split: ShardedSplit, sample: int) -> Truth:
    """Returns the annotated truth of a sample.

    Raises:
        DataError: it is damaged; the message names shard and bytes.
    """
    manifest = split.manifest
    if manifest.task == "classification":
        return split.label(sample)
    annotation = split.annotation(sample)
    try:
        if manifest.task == "detection":
            return objects_of(parse_detection(annotation, manifest.class_ids))
        return areas_of(annotation)
    except RejectedSample as error:
        raise split.damaged(sample, f"its annotation can't be used ({error})") from None


def objects_of(found: Detection) -> DrawnObjects:
    """All objects, crowds and unusable ones too, with their masks."""
    boxes = found.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    masks = [found.mask(place) for place in range(len(found.labels))]
    return DrawnObjects(boxes, found.labels, masks=masks, is_crowd=found.is_crowd)


def areas_of(mask: bytes) -> NDArray[np.int16]:
    """Labels by pixel: 0..n-1, -1 is ignored."""
    return read_mask(mask).astype(np.int16) - 1


ROOM = {"classification": (168, 168), "detection": (440, 360), "segmentation": (440, 360)}
"""Width and height of a sample's picture, pixels."""
_COUNTED_BY = {
    "classification": ("images", "images a class"),
    "detection": ("objects", "objects a class"),
    "segmentation": ("images", "images that show a class"),
}
"""Things that are counted of each class: for the axis, and in words."""
_COUNTED = {"detection": 20_000, "segmentation": 1_000}
"""Classes of images with boxes or masks are counted by reading annotations: of a larger split, so many."""

_CACHE_BYTES = 1 << 30
"""Of a dataset at a URL, kept for as long as it is looked at."""


@dataclass(frozen=True)
class ClassCounts:
    """How often each class occurs."""

    counts: NDArray[np.int64]
    """Shape (classes,)."""
    unit: str
    per_class: str
    remark: str
    """Says so if only a part of the split was counted."""

    @property
    def words(self) -> str:
        """Smallest, median and largest class."""
        smallest, median, largest = self.counts.min(), np.median(self.counts), self.counts.max()
        if smallest == largest:
            return f"{self.per_class}: {largest:,} for all"
        return f"{self.per_class}: min {smallest:,}, median {median:,.0f}, max {largest:,}"


class SplitView:
    """A split, its index columns, and its samples as pictures."""

    def __init__(self, path: str, split: str | None = None) -> None:
        self.manifest: DatasetManifest = open_manifest(path)
        self.name = split or (
            "train" if "train" in self.manifest.splits else next(iter(self.manifest.splits))
        )
        formats = self.manifest.formats
        stored = "webdataset" if "webdataset" in formats else formats[0]
        self._scratch = TemporaryDirectory(prefix="convmlp-show-")  # gone with this object
        cache = CacheOptions(Path(self._scratch.name), _CACHE_BYTES)
        storage = open_storage(path, self.manifest, self.name, stored, cache=cache, block_size=1)
        self.split = ShardedSplit(path, self.manifest, self.name, stored, storage=storage)
        self.columns: Columns = read_columns(self.split)
        self.task = self.manifest.task
        self.colors: list[Color] = [class_color(label) for label in range(self.manifest.num_classes)]

    @property
    def title(self) -> str:
        """`dataset / split`."""
        return f"{self.manifest.name} / {self.name}"

    def labels_in(self, sample: int) -> NDArray[np.int64]:
        """Labels of a sample: its own, that of each object, or those its mask holds."""
        if self.task == "classification":
            return self.columns.label[sample : sample + 1].astype(np.int64)
        annotation = self.split.annotation(sample)
        if self.task == "detection":
            return parse_detection(annotation, self.manifest.class_ids).labels
        return self._present(areas_of(annotation))

    def cell(self, sample: int) -> tuple[Cell, set[int]]:
        """The sample as a picture of at most `ROOM`, and the labels that are seen in it."""
        image, label = self.split.image(sample)
        key, scale = self.split.key(sample), fit(image.size, ROOM[self.task])
        names = self.manifest.classes
        if self.task == "classification":
            return Cell(resized(image, scale), names[label], key), {label}
        annotation = self.split.annotation(sample)
        if self.task == "segmentation":
            classes = areas_of(annotation)
            present = self._present(classes).tolist()
            ignored = float((classes < 0).mean())
            caption = f"{len(present)} classes" + (f", {ignored:.0%} ignored" if ignored >= 0.005 else "")
            picture = draw_classes(image, classes, names, self.colors, scale=scale)
            return Cell(picture, caption, key), set(present)
        found = parse_detection(annotation, self.manifest.class_ids)
        labels = found.labels.tolist()
        objects = objects_of(found)
        colors = [self.colors[label] for label in labels]
        picture = draw_objects(
            image, objects.boxes, _captions(found, names), colors, objects.masks, scale=scale
        )
        return Cell(picture, _listed([names[label] for label in labels]), key), set(labels)

    def class_counts(self) -> ClassCounts:
        """How often each class occurs: from the index alone for classification, else from the annotations."""
        size, (unit, per_class) = self.manifest.num_classes, _COUNTED_BY[self.task]
        if self.task == "classification":
            return ClassCounts(np.bincount(self.columns.label, minlength=size), unit, per_class, "")
        chosen, remark = np.arange(len(self.split)), ""
        if len(chosen) > (limit := _COUNTED[self.task]):
            chosen = np.sort(np.random.default_rng(0).choice(len(chosen), limit, replace=False))
            remark = f"counted in {limit:,} of {len(self.split):,} images"
        counts = np.zeros(size, np.int64)
        for sample in chosen.tolist():
            counts += np.bincount(self.labels_in(sample), minlength=size)
        return ClassCounts(counts, unit, per_class, remark)

    def _present(self, classes: NDArray[np.integer]) -> NDArray[np.int64]:
        labels = np.unique(classes).astype(np.int64)
        return labels[(labels >= 0) & (labels < self.manifest.num_classes)]


def _captions(found: Detection, names: list[str]) -> list[str]:
    crowds = zip(found.labels.tolist(), found.is_crowd.tolist(), strict=True)
    return [f"{names[label]} (crowd)" if crowd else names[label] for label, crowd in crowds]


def _listed(names: list[str]) -> str:
    """`3 person, chair`: the most frequent first."""
    numbers = sorted(((names.count(name), name) for name in set(names)), key=lambda pair: (-pair[0], pair[1]))
    listed = ", ".join(name if number == 1 else f"{number} {name}" for number, name in numbers)
    return listed or "no objects"
