"""The checksums that a dataset's indexes have for its samples, to compare with those of what was read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.data.sample_order import Indices
from convmlp_platform.data.storage.block_cache import CacheOptions
from convmlp_platform.data.storage.storage import open_storage, shards_of
from convmlp_platform.errors import DataError
from convmlp_platform.ledger.ledger import LedgerHeader


class PayloadChecksums:
    """Low halves of the XXH3-64 of a split's payloads, by format: 4 bytes a sample.

    Args:
        dataset: folder or URL; only its manifest and indexes are read.

    Raises:
        DataError: the dataset isn't the run's, or an index is missing or damaged.
    """

    def __init__(self, dataset: str | Path, header: LedgerHeader) -> None:
        self.dataset, self.split, self.format = str(dataset), header.split, header.format
        self.manifest = open_manifest(self.dataset)
        if self.manifest.digest != header.digest:
            raise DataError(f"{dataset} is dataset {self.manifest.digest}, but the run used {header.digest}")
        self.checksums = cache(self._read)
        self.checksums(self.format)

    def agree(self, samples: Indices, checksums: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Returns which of the checksums [N] are those of the samples [N] in the run's format, [N] bool."""
        return self.checksums(self.format)[samples] == checksums

    def agree_elsewhere(self, samples: Indices, checksums: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Returns which of the checksums [N] are those of the samples [N] in another format of the dataset, [N] bool.

        A damaged sample may be read from another format.
        """
        agree = np.zeros(len(samples), dtype=np.bool_)
        for name in self.manifest.splits[self.split].formats:
            if name != self.format and len(samples):
                agree |= self.checksums(name)[samples] == checksums
        return agree

    def _read(self, format: str) -> NDArray[np.uint32]:
        shards = shards_of(self.manifest, self.split, format)
        with TemporaryDirectory(prefix="convmlp-indexes-") as folder:
            fetched = CacheOptions(Path(folder), 1 << 40)
            storage = open_storage(self.dataset, self.manifest, self.split, format, cache=fetched)
            columns = [storage.index(number).checksum.astype(np.uint32) for number in range(len(shards))]
        return np.concatenate(columns)
