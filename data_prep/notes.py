"""Notes on a dataset that a person would want before training on it: each is a line, none is an error."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.index import ShardIndex
from data_prep.manifest import Task

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
    notes = list(_twins(samples, task))
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


def _named(labels: NDArray[np.intp], classes: Sequence[str]) -> str:
    return ", ".join(classes[label] for label in labels[:_SHOWN].tolist()) + ", ..." * (len(labels) > _SHOWN)


def _shown(samples: _Samples, groups: Sequence[NDArray[np.intp]]) -> str:
    named = sorted(sorted(map(samples.name, group.tolist()))[:_SHOWN] for group in groups)
    return "; ".join(" = ".join(names) for names in named[:_SHOWN]) + "; ..." * (len(groups) > _SHOWN)
