"""The samples that a model was trained on, by checksum: recorded with its registration, compared with a split's.

The record is the sorted 64-bit checksums of all images of the training split, little-endian: of the sources' bytes in
classification; of the stored images in detection and segmentation, where a source's checksum covers its annotation too
(an image with other boxes is the same image). 1,281,167 images take 10 MB; that one of 50,000
others agrees with any of them by chance has a probability of 4e-9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.dataset.split import ShardedSplit
from data_prep.dataset.index import ShardIndex
from data_prep.dataset.manifest import Task

Checksums = NDArray[np.uint64]


def checksums_of(indexes: Sequence[ShardIndex], task: Task) -> Checksums:
    """The checksum of each sample, in order."""
    if not indexes:
        return np.zeros(0, np.uint64)
    return np.concatenate(
        [
            np.ascontiguousarray(index.source_hash[:, :8]).view("<u8").reshape(-1).astype(np.uint64)
            if task == "classification"
            else np.asarray(index.checksum, np.uint64)
            for index in indexes
        ]
    )


def checksums_of_split(split: ShardedSplit) -> Checksums:
    """The checksum of each sample of a split, in order; opens the index of every shard."""
    indexes = [split.index(number) for number in range(len(split.shards))]
    return checksums_of(indexes, split.manifest.task)


def record_of(checksums: Checksums) -> bytes:
    """The record of a training split."""
    return np.unique(checksums).astype("<u8").tobytes()


def seen(checksums: Checksums, content: bytes) -> NDArray[np.bool_]:
    """Which samples are in a training split's record; shape (samples,).

    Raises:
        ValueError: the content is no record.
    """
    known = np.frombuffer(content, "<u8")
    places = np.minimum(np.searchsorted(known, checksums), max(len(known) - 1, 0))
    return known[places] == checksums if len(known) else np.zeros(len(checksums), bool)
