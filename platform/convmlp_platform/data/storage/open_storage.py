"""The storage that a dataset's path means: a folder, or a URL with a local cache."""

from __future__ import annotations

import logging
from pathlib import Path

from convmlp_platform.data.storage.block_cache import BlockCache, CacheOptions
from convmlp_platform.data.storage.local import LocalStorage
from convmlp_platform.data.storage.remote import RemoteStorage
from convmlp_platform.data.storage.storage import Storage
from convmlp_platform.errors import DataError
from data_prep.dataset.manifest import DatasetManifest, ShardInfo
from data_prep.storage.retry import Patience
from data_prep.storage.urls import local_path, shown

_log = logging.getLogger(__name__)


def open_storage(
    location: str | Path,
    manifest: DatasetManifest,
    split: str,
    format: str,
    *,
    cache: CacheOptions | None = None,
    block_size: int = 64,
    patience: Patience | None = None,
) -> Storage:
    """The shards of one split in one format.

    Args:
        location: the dataset's folder or URL; a `file://` URL is a folder.
        manifest: the dataset's.
        split, format: which shards.
        cache: needed for a URL.
        block_size: samples that are fetched together: `SampleOrder.block`.
        patience: with a remote storage's transient errors.

    Raises:
        DataError: the dataset has no such split or format; a shard of a folder is missing or has another size; the
            cache can't be used.
    """
    shards = shards_of(manifest, split, format)
    folder = local_path(str(location))
    if folder is not None:
        return LocalStorage(folder, shards)
    if cache is None:
        raise DataError(
            f"data.path (={shown(str(location))}): a URL needs data.cache_dir and data.cache_bytes"
        )
    return RemoteStorage(str(location), shards, BlockCache(cache), block_size, patience)


def shards_of(manifest: DatasetManifest, split: str, format: str) -> list[ShardInfo]:
    """The shards of one split in one format.

    Raises:
        DataError: the dataset doesn't have them.
    """
    if split not in manifest.splits:
        raise DataError(f"dataset {manifest.name} has no split {split!r}; it has {sorted(manifest.splits)}")
    formats = manifest.splits[split].formats
    if format not in formats:
        raise DataError(
            f"data.format: dataset {manifest.name} has no {format} shards; it has {sorted(formats)}"
        )
    return formats[format]


def warn_if_too_small(
    cache: CacheOptions, shards: list[ShardInfo], num_streams: int, window: int, read_ahead: int
) -> int:
    """Bytes that the shuffle windows of the streams read on this node take, with those read ahead; a warning where
    the cache can't hold them, because blocks would then be fetched again and again."""
    per_sample = sum(shard.bytes for shard in shards) / sum(shard.num_samples for shard in shards)
    needed = round(num_streams * window * (1 + read_ahead) * per_sample)
    total = sum(shard.bytes for shard in shards)
    needed = min(needed, total)
    if needed > cache.bytes:
        _log.warning(
            "data.cache_bytes (=%s) is too small: %d streams on this node x %d samples of a window x (1 + "
            "data.read_ahead) take %s bytes; raise it, or lower data.shuffle_window or data.read_ahead",
            f"{cache.bytes:,}",
            num_streams,
            window,
            f"{needed:,}",
        )
    return needed
