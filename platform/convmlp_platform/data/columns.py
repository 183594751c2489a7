"""A split's index columns over all its shards: what can be known of its samples without reading an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.split import ShardedSplit


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
