"""The order of samples: one pure function of (number of samples, seed, epoch). docs/decisions/0003 has the why.

Each epoch is a permutation of all samples. It is cut into `num_streams` canonical streams, and a global batch
takes the next `global_batch_size / num_streams` samples of every stream, stream after stream. Streams run on
over the epochs' ends, so every batch is full and every sample is used exactly once in each epoch; a run's
last samples, fewer than a batch, are left out once, at its very end.

With repeated augmentation (MultiGrain, arXiv:1902.05509) a sample's uses stand at neighbouring places of neighbouring
streams: nearly always in one step, and in different micro-batches. Each of them counts as a use in an epoch of its own:
`repeats` epochs go on at once, and in each of them every sample is used exactly once, as ever. Whatever is keyed by
epoch and sample, as augmentation is, is drawn for each use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from convmlp_platform.data.order.permutation import Indices, KeyedPermutation, derive_key


@dataclass(frozen=True)
class SampleOrder:
    """The order in which `num_samples` samples are used, by any number of workers and in any format.

    Blocks of `block` neighbouring samples are permuted, then samples within windows of `window`: a reader thus
    needs a window's blocks at a time, which lie together on disk, and never the whole dataset.

    Args:
        repeats: uses of a sample one after the other; `repeats` epochs then hold as many uses as without.
    """

    num_samples: int
    num_streams: int
    seed: int
    block: int = 64
    window: int = 4096
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.num_samples < self.num_streams:
            raise ValueError(f"{self.num_samples} samples are too few for {self.num_streams} streams")

    def stream_bounds(self, stream: int) -> tuple[int, int]:
        """First and past-the-last place of a stream within an epoch; lengths differ by at most one."""
        return (
            stream * self.num_samples // self.num_streams,
            (stream + 1) * self.num_samples // self.num_streams,
        )

    def stream_samples(self, stream: int, start: int, count: int) -> tuple[Indices, Indices]:
        """Places start..start+count of a stream that runs on over epochs, as (epochs [count], sample ids [count])."""
        return self.samples_at(stream, np.arange(start, start + count, dtype=np.int64))

    def samples_at(self, stream: int, places: Indices) -> tuple[Indices, Indices]:
        """Any places [N] of a stream that runs on over epochs, as (epochs [N], sample ids [N])."""
        if self.repeats == 1:
            return self._once(stream, places)
        turns, uses = np.divmod(places, self.repeats)
        epochs, samples = np.empty_like(places), np.empty_like(places)
        for use in range(self.repeats):
            chosen = uses == use
            rounds, samples[chosen] = self._once((stream - use) % self.num_streams, turns[chosen])
            epochs[chosen] = rounds * self.repeats + use
        return epochs, samples

    def _once(self, stream: int, places: Indices) -> tuple[Indices, Indices]:
        """`samples_at` without repetitions."""
        first, past = self.stream_bounds(stream)
        epochs, local = np.divmod(places, past - first)
        samples = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            samples[chosen] = self._in_epoch(int(epoch), stream, local[chosen])
        return epochs, samples

    def _in_epoch(self, epoch: int, stream: int, local: Indices) -> Indices:
        """Sample ids at `local` places of a stream in one epoch."""
        first, past = self.stream_bounds(stream)
        if self.window == 1:  # what the loop gives, at a hundredth of its cost
            return self._blocks(epoch, first + local)
        shuffled = np.empty_like(local)
        windows = local // self.window
        for window in np.unique(windows):
            chosen, base = windows == window, int(window) * self.window
            size = min(self.window, past - first - base)
            shuffle = _permutation(size, self.seed, epoch, "window", stream, int(window))
            shuffled[chosen] = base + shuffle(local[chosen] - base)
        return self._blocks(epoch, first + shuffled)

    def _blocks(self, epoch: int, places: Indices) -> Indices:
        """Permute whole blocks. They are the same neighbours in every epoch, so that what storage fetched and
        cached for one epoch serves the next; the one that the dataset's end cuts short is put in between two
        others, at another place each epoch."""
        whole, short = divmod(self.num_samples, self.block)
        cut = derive_key(self.seed, epoch, "short") % (whole + 1) * self.block
        in_short = (places >= cut) & (places < cut + short)
        samples = whole * self.block + places - cut
        blocks, offsets = np.divmod(np.where(places < cut, places, places - short)[~in_short], self.block)
        if len(blocks):
            samples[~in_short] = _permutation(whole, self.seed, epoch, "block")(blocks) * self.block + offsets
        return samples

    def step_samples(
        self, step: int, global_batch_size: int, first: int = 0, count: int | None = None
    ) -> tuple[Indices, Indices]:
        """Samples `first`..`first + count` of the global batch of a step (counted from 0), with their epochs."""
        count = global_batch_size - first if count is None else count
        per_stream = global_batch_size // self.num_streams
        epochs, samples = [], []
        at = first
        while at < first + count:
            stream, offset = divmod(at, per_stream)
            take = min(per_stream - offset, first + count - at)
            epoch_ids, sample_ids = self.stream_samples(stream, step * per_stream + offset, take)
            epochs.append(epoch_ids)
            samples.append(sample_ids)
            at += take
        return np.concatenate(epochs), np.concatenate(samples)


@lru_cache(maxsize=1024)
def _permutation(size: int, *key_parts: int | str) -> KeyedPermutation:
    return KeyedPermutation(size, derive_key(*key_parts))
