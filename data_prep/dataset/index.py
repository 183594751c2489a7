"""The sample index beside each shard: where every sample's payload lies and what it must hash to.

An Arrow IPC file of one uncompressed record batch, so reading it maps it into memory: opening the
index of a million samples costs microseconds and its numeric columns are views, not copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from data_prep.errors import DataPrepError
from data_prep.storage.files import atomic_file

ENCODED = 0
"""`encoding`: the payload is an image file (JPEG, PNG, ...)."""
RAW_RGB = 1
"""`encoding`: the payload is RGB uint8 pixels of shape (height, width, 3)."""

SOURCE_HASH_BYTES = 16

_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("label", pa.int32()),
        ("checksum", pa.uint64()),
        ("encoding", pa.uint8()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("source_hash", pa.binary(SOURCE_HASH_BYTES)),
        ("annotation_offset", pa.int64()),
        ("annotation_length", pa.int64()),
        ("annotation_checksum", pa.uint64()),
    ]
)


class IndexRow(NamedTuple):
    """One sample of a shard.

    Args:
        key: the sample's name, unique within its split.
        offset, length: the payload's bytes in the shard file.
        label: class number.
        checksum: XXH3-64 of exactly those bytes.
        encoding: `ENCODED` or `RAW_RGB`.
        height, width: of the stored pixels (EXIF orientation is not applied).
        source_hash: 128-bit hash of the source content (`data_prep.dataset.checksums`), of image and annotation where
            the task has annotations.
        annotation_offset, annotation_length: the annotation's bytes in the shard file (JSON for detection, the
            mask's PNG file for segmentation); 0 for classification.
        annotation_checksum: XXH3-64 of exactly those bytes; 0 for classification.
    """

    key: str
    offset: int
    length: int
    label: int
    checksum: int
    encoding: int
    height: int
    width: int
    source_hash: bytes
    annotation_offset: int = 0
    annotation_length: int = 0
    annotation_checksum: int = 0


@dataclass(frozen=True)
class ShardIndex:
    """A shard's index in memory: n samples; numeric columns are read-only views of the mapped file."""

    path: Path
    keys: pa.LargeStringArray
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    label: NDArray[np.int32]
    checksum: NDArray[np.uint64]
    encoding: NDArray[np.uint8]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    source_hash: NDArray[np.uint8]
    """Shape (n, 16)."""
    annotation_offset: NDArray[np.int64]
    annotation_length: NDArray[np.int64]
    annotation_checksum: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, position: int) -> str:
        """The key of the sample at a 0-based position in the shard."""
        return str(self.keys[position].as_py())

    def row(self, position: int) -> IndexRow:
        """The sample at a 0-based position in the shard, as Python values."""
        return IndexRow(
            self.key(position),
            int(self.offset[position]),
            int(self.length[position]),
            int(self.label[position]),
            int(self.checksum[position]),
            int(self.encoding[position]),
            int(self.height[position]),
            int(self.width[position]),
            self.source_hash[position].tobytes(),
            int(self.annotation_offset[position]),
            int(self.annotation_length[position]),
            int(self.annotation_checksum[position]),
        )


def write_index(path: Path, rows: Iterable[IndexRow]) -> None:
    """Write the index of one shard atomically; the same rows give the same bytes."""
    with atomic_file(path) as file:
        write_rows(file, rows)


def write_rows(file: BinaryIO, rows: Iterable[IndexRow]) -> None:
    """Write the index of one shard into an open file."""
    columns: list[Any] = list(zip(*rows, strict=True)) or [[] for _ in _SCHEMA]
    arrays = [pa.array(list(column), type=field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    batch = pa.record_batch(arrays, schema=_SCHEMA)
    options = ipc.IpcWriteOptions(compression=None, metadata_version=ipc.MetadataVersion.V5)
    with ipc.new_file(file, _SCHEMA, options=options) as writer:
        writer.write_batch(batch)
    file.flush()


def read_index(path: str | Path, *, full: bool = False) -> ShardIndex:
    """Map a shard's index into memory.

    Args:
        path: the index's file.
        full: also look at every key (is it UTF-8, do the keys fill their column), which reads the whole file.

    Raises:
        DataPrepError: the file is missing or is not an intact sample index.
    """
    path = Path(path)
    try:
        with pa.memory_map(str(path)) as mapped, ipc.open_file(mapped) as reader:
            if not reader.schema.equals(_SCHEMA) or reader.num_record_batches != 1:
                raise DataPrepError(
                    f"{path} is not a sample index of this release (other columns): prepare the dataset again"
                )
            batch = reader.get_batch(0)
            batch.validate(full=full)
            if any(column.null_count for column in batch.columns):
                raise DataPrepError(f"{path} is not an intact sample index (it has empty values)")
    except FileNotFoundError:
        raise DataPrepError(
            f"no sample index at {path}: the dataset is incomplete; run its data-prep job again"
        ) from None
    except (OSError, pa.ArrowInvalid) as error:
        raise DataPrepError(f"{path} is not an intact sample index ({error})") from error
    return _view(path, batch)


def _view(path: Path, batch: Any) -> ShardIndex:
    column = {name: batch.column(i) for i, name in enumerate(_SCHEMA.names)}
    # pyarrow's own to_numpy imports pandas: half a second and 45 MB in every reader process.
    numeric = {
        field.name: _values(column[field.name], np.dtype(str(field.type)))[: batch.num_rows]
        for field in _SCHEMA
        if field.name not in ("key", "source_hash")
    }
    hashes = _values(column["source_hash"], np.dtype(np.uint8))
    hashes = hashes[: batch.num_rows * SOURCE_HASH_BYTES].reshape(batch.num_rows, SOURCE_HASH_BYTES)
    return ShardIndex(path=path, keys=column["key"], source_hash=hashes, **numeric)


def _values(column: Any, kind: np.dtype[Any]) -> NDArray[Any]:
    """A read-only view of a column's values, with what the buffer is padded by."""
    return np.frombuffer(column.buffers()[1] or b"", dtype=np.uint8).view(kind)
