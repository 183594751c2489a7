"""The storage that a dataset's path means: a folder, or a URL with a local cache.

A dataset at a URL is looked at before anything is read of it: its manifest, and whether its shards are there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from convmlp_platform.data.storage.block_cache import BlockCache, CacheOptions
from convmlp_platform.data.storage.local import LocalStorage
from convmlp_platform.data.storage.remote import RemoteStorage
from convmlp_platform.errors import DataError, data_error
from data_prep.dataset.index import ShardIndex
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest, ShardInfo, parse_manifest
from data_prep.errors import DataPrepError
from data_prep.storage.remote_files import open_filesystem, read_file
from data_prep.storage.retry import Patience, retried
from data_prep.storage.urls import join_url, local_path, shown

_log = logging.getLogger(__name__)


class Storage(Protocol):
    """The shards of one split in one format, by number. Forked reader processes may share one object.

    Raises (all methods): DataError naming the file and what to do; StorageUnreachable where the storage is away.
    """

    def index(self, number: int) -> ShardIndex:
        """The shard's index, checked against the manifest's SHA-256 when it is first opened."""
        ...

    def read(self, number: int, offset: int, length: int) -> bytes | memoryview:
        """`length` bytes of the shard at `offset`; the caller checks them."""
        ...

    def discard(self, number: int, offset: int, length: int) -> bool:
        """Forget any copy of these bytes, so that the next `read` fetches them anew; False if there is none."""
        ...

    def ahead(self, samples: Iterable[int]) -> None:
        """A hint that these samples of the split will soon be read."""
        ...


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
    if (lack := manifest.lacks(split)) is not None:
        raise DataError(f"dataset {manifest.name} {lack}")
    if (lack := manifest.lacks(split, format)) is not None:
        raise DataError(f"data.format: dataset {manifest.name} {lack}")
    return manifest.splits[split].formats[format]


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


def load_remote_manifest(url: str, patience: Patience | None = None) -> DatasetManifest:
    """The manifest of the dataset at a URL, with its checksum checked; fetched anew at every start.

    Raises:
        DataError: there is none, it is damaged, or the storage can't be read.
    """
    place = join_url(url, MANIFEST_NAME)
    try:
        return parse_manifest(read_file(place, patience), shown(place))
    except DataPrepError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise DataError(
                f"data.path: no dataset manifest at {shown(place)}: prepare the dataset in a folder and copy it "
                f"there (`convmlp data copy FOLDER {shown(url)}`); a copy that did not finish goes on when run again"
            ) from error
        raise data_error(error, "data.path: ") from error


def check_remote_shards(url: str, shards: list[ShardInfo]) -> list[str]:
    """Returns a line for each shard that is missing or has another size than the manifest says.

    The storage is listed for that (a request for 1,000 files). Where it can't be listed, as over plain HTTP, no line is
    returned.

    Raises:
        DataError: the storage can't be read.
    """
    if url.startswith(("http://", "https://")):
        return []

    def listed() -> dict[str, int]:
        fs, _ = open_filesystem(url)
        fs.invalidate_cache()
        folders = {join_url(url, shard.file).rpartition("/")[0] for shard in shards}
        return {
            entry["name"].lstrip("/"): int(entry["size"] or 0)
            for folder in folders
            for entry in fs.ls(open_filesystem(folder)[1], detail=True)
        }

    try:
        sizes = retried(listed, url)
    except DataPrepError as error:
        raise data_error(error) from error
    problems = []
    for shard in shards:
        place = join_url(url, shard.file)
        size = sizes.get(open_filesystem(place)[1].lstrip("/"))
        if size is None:
            problems.append(f"{shown(place)} is missing: copy the dataset there again (`convmlp data copy`)")
        elif size != shard.bytes:
            problems.append(
                f"{shown(place)} has {size} bytes, the manifest says {shard.bytes}: it was changed"
            )
    return problems
