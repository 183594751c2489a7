"""A dataset at a URL before anything is read of it: its manifest, and whether its shards are there."""

from __future__ import annotations

from convmlp_platform.errors import DataError, data_error
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest, ShardInfo, parse_manifest
from data_prep.errors import DataPrepError
from data_prep.storage.remote_files import open_filesystem, read_file
from data_prep.storage.retry import Patience, retried
from data_prep.storage.urls import join_url, shown


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


def check_remote_shards(url: str, shards: list[ShardInfo], patience: Patience | None = None) -> list[str]:
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
            for entry in fs.ls(fs._strip_protocol(folder), detail=True)
        }

    try:
        sizes = retried(listed, url, patience)
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
