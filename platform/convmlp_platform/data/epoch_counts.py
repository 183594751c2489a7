"""Counting samples: which were used in each epoch, at one bit a sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.permutation import Indices


@dataclass
class EpochCounts:
    """Record of the samples of 0..num_samples-1 that were used, by epoch.

    An epoch costs num_samples / 8 bytes until all of its samples were used, and nothing from then on.
    """

    num_samples: int
    used: dict[int, int] = field(default_factory=dict)
    """Epoch → how many different samples were used."""
    _bits: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def add(self, epochs: Indices, samples: Indices) -> NDArray[np.bool_]:
        """Count a use of each (epoch [N], sample id [N]); returns which of them had one before, [N] bool."""
        again = np.zeros(len(samples), dtype=np.bool_)
        if len(samples):
            for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
                chosen = epochs == epoch
                again[chosen] = self._add(epoch, samples[chosen])
        return again

    def unused(self, epoch: int, limit: int) -> list[int]:
        """The first samples that the epoch didn't use."""
        if self.used.get(epoch, 0) == self.num_samples:
            return []
        bits = self._bits.get(epoch, np.zeros(0, dtype=np.uint8))
        if not len(bits):
            return list(range(min(limit, self.num_samples)))
        flags = np.unpackbits(bits, count=self.num_samples, bitorder="little")
        return np.flatnonzero(flags == 0)[:limit].tolist()

    def _add(self, epoch: int, samples: Indices) -> NDArray[np.bool_]:
        if not len(samples) or self.used.get(epoch) == self.num_samples:
            return np.ones(len(samples), dtype=np.bool_)
        bits = self._bits.setdefault(epoch, np.zeros((self.num_samples + 7) // 8, dtype=np.uint8))
        places, masks = samples >> 3, np.left_shift(1, samples & 7).astype(np.uint8)
        again = ((bits[places] & masks) != 0) | _repeated(samples)
        np.bitwise_or.at(bits, places, masks)
        self.used[epoch] = self.used.get(epoch, 0) + int(len(samples) - again.sum())
        if self.used[epoch] == self.num_samples:
            del self._bits[epoch]
        return again


def _repeated(values: Indices) -> NDArray[np.bool_]:
    """Returns which of the values an earlier place has already.

    Sorting is 80 times as fast as numpy 2.4's `unique`.
    """
    repeated = np.zeros(len(values), dtype=np.bool_)
    ordered = np.sort(values)
    if (ordered[1:] == ordered[:-1]).any():
        places = np.argsort(values, kind="stable")
        repeated[places[1:]] = values[places[1:]] == values[places[:-1]]
    return repeated
