"""One split of a prepared dataset, read sample by sample through its index, from either shard format."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import xxhash
from PIL import Image

from convmlp_platform.errors import DataError
from data_prep.errors import DataPrepError
from data_prep.index import RAW_RGB, IndexRow, ShardIndex, read_index
from data_prep.manifest import DatasetManifest, ShardInfo, load_manifest

# Open files a reader keeps; shards of a window lie together, so few are in use at a time.
OPEN_SHARDS = 128


def open_manifest(path: str, digest: str | None = None) -> DatasetManifest:
    """The manifest of the dataset at `path`.

    Raises:
        DataError: there is none, it is damaged, or it is not the dataset that `digest` names.
    """
    try:
        manifest = load_manifest(path)
    except DataPrepError as error:
        raise DataError(f"data.path: {error}") from None
    if digest is not None and manifest.digest != digest:
        raise DataError(
            f"data.digest: the dataset at {path} is {manifest.digest}, but the job asks for {digest}: "
            "point data.path at the dataset it was written for, or update data.digest"
        )
    return manifest


class ShardedSplit:
    """Random access to the samples 0..len-1 of a split.

    Reads are positioned (`pread`), so any number of forked reader processes may share one object.
    Every payload is checked against its XXH3-64 unless `verify` is False.

    Raises:
        DataError: the split or format isn't in the dataset, a file is missing or has another size, or, while
            reading, a payload is damaged; the message names shard, sample and byte range.
    """

    def __init__(
        self, folder: str | Path, manifest: DatasetManifest, split: str, format: str, *, verify: bool = True
    ) -> None:
        self.folder, self.name, self.verify = Path(folder), f"{manifest.name}/{split}", verify
        if split not in manifest.splits:
            raise DataError(
                f"dataset {manifest.name} has no split {split!r}; it has {sorted(manifest.splits)}"
            )
        formats = manifest.splits[split].formats
        if format not in formats:
            raise DataError(
                f"data.format: dataset {manifest.name} has no {format} shards; it has {sorted(formats)}"
            )
        self.shards: list[ShardInfo] = formats[format]
        for shard in self.shards:
            _check_file(self.folder / shard.file, shard.bytes)
        self._starts = [0, *accumulate(shard.num_samples for shard in self.shards)]
        self._index = lru_cache(maxsize=None)(self._read_index)
        self._file = lru_cache(maxsize=OPEN_SHARDS)(_OpenFile)

    def __len__(self) -> int:
        return self._starts[-1]

    def image(self, sample: int) -> tuple[Image.Image, int]:
        """The sample's RGB image and its label."""
        row, payload, shard = self._payload(sample)
        if row.encoding == RAW_RGB:
            return Image.frombytes("RGB", (row.width, row.height), payload), row.label
        try:
            return Image.open(io.BytesIO(payload)).convert("RGB"), row.label
        except OSError as error:
            raise DataError(
                f"{self.folder / shard.file}: sample {row.key!r} can't be decoded: {error}"
            ) from None

    def _payload(self, sample: int) -> tuple[IndexRow, bytes, ShardInfo]:
        number = bisect_right(self._starts, sample) - 1
        shard = self.shards[number]
        row = self._index(number).row(sample - self._starts[number])
        path = self.folder / shard.file
        payload = os.pread(self._file(path).descriptor, row.length, row.offset)
        if len(payload) != row.length or (self.verify and xxhash.xxh3_64_intdigest(payload) != row.checksum):
            raise DataError(
                f"{path}: sample {row.key!r} (bytes {row.offset}..{row.offset + row.length}) is damaged: "
                f"its checksum is not the index's; run `convmlp data verify {self.folder}`"
            )
        return row, payload, shard

    def _read_index(self, number: int) -> ShardIndex:
        try:
            return read_index(self.folder / self.shards[number].index)
        except DataPrepError as error:
            raise DataError(str(error)) from None


class _OpenFile:
    """A file descriptor that is closed with its last user."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.descriptor)


def _check_file(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"shard {path} can't be read: {error.strerror}; run its data-prep job again"
        ) from None
    if found != size:
        raise DataError(f"shard {path} has {found} bytes, its manifest says {size}: it was cut or changed")
