"""The bytes of each block of a shard. A block is neighbouring samples that the sample order keeps together."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from data_prep.index import ShardIndex


class BlockTable:
    """The blocks of one shard as byte ranges, from the first payload's start to the last one's end.

    Blocks are cut by global sample id (`id // block_size`), as the order permutes them; where one spans two shards,
    each holds a part of it.

    Args:
        index: the shard's index, payloads in sample order.
        first_sample: the split's id of the shard's first sample.
        block_size: samples of a block.
    """

    def __init__(self, index: ShardIndex, first_sample: int, block_size: int) -> None:
        ids = first_sample + np.arange(len(index))
        cuts = np.flatnonzero(np.diff(ids // block_size, prepend=-1))
        annotated = index.annotation_length > 0
        first = np.where(annotated, np.minimum(index.offset, index.annotation_offset), index.offset)
        ends = np.maximum(
            index.offset + index.length,
            np.where(annotated, index.annotation_offset + index.annotation_length, 0),
        )
        self._starts: list[int] = np.minimum.reduceat(first, cuts).tolist()
        self._ends: list[int] = np.maximum.reduceat(ends, cuts).tolist()
        self._first_block, self._block_size = first_sample // block_size, block_size

    def __len__(self) -> int:
        return len(self._starts)

    def of_sample(self, sample: int) -> tuple[int, int]:
        """Start and end of the block that holds this sample of the split."""
        number = sample // self._block_size - self._first_block
        return self._starts[number], self._ends[number]

    def holding(self, offset: int, length: int) -> tuple[int, int] | None:
        """Start and end of the block that holds these bytes; None where they aren't one block's."""
        number = bisect_right(self._starts, offset) - 1
        if number < 0 or offset + length > self._ends[number]:
            return None
        return self._starts[number], self._ends[number]
