"""`verify` for a dataset at a URL: its files come one after the other into a scratch folder and are checked there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.check.verify import VerifyReport, verify_shard, verify_whole
from data_prep.dataset.index import ShardIndex
from data_prep.dataset.manifest import MANIFEST_NAME, ShardInfo, parse_manifest
from data_prep.dataset.places import Remote
from data_prep.errors import DataPrepError, Unreachable


def verify_remote(url: str, *, deep: bool = True, scratch: Path | None = None) -> VerifyReport:
    """Check a dataset at a URL against its manifest and indexes, as `verify` does a folder.

    Args:
        url: the dataset's.
        deep: read every byte; otherwise manifest, indexes, sizes and the dataset digest.
        scratch: a folder with room for the largest shard and all indexes; default: the system's temporary one.

    Raises:
        Unreachable: the storage can't be asked, which says nothing about the dataset.
    """
    place = Remote(url)
    report = VerifyReport(str(place))
    try:
        manifest = parse_manifest(place.read(MANIFEST_NAME), f"{place}/{MANIFEST_NAME}")
    except Unreachable:
        raise
    except DataPrepError as error:
        report.problems.append(str(error))
        return report
    report.manifest = manifest
    indexes: dict[str, dict[str, list[ShardIndex]]] = {}
    complete = True
    with TemporaryDirectory(dir=scratch, prefix="convmlp-verify-") as folder:
        for split, info in manifest.splits.items():
            indexes[split] = {}
            for format_name, shards in info.formats.items():
                found = []
                for shard in shards:
                    with _here(place, shard, Path(folder), deep):
                        found.append(
                            verify_shard(Path(folder), manifest.task, format_name, shard, deep, report)
                        )
                complete = complete and None not in found
                indexes[split][format_name] = [index for index in found if index is not None]
        if complete:
            report.problems += verify_whole(manifest, indexes)
    return report


@contextmanager
def _here(place: Remote, shard: ShardInfo, folder: Path, deep: bool) -> Iterator[None]:
    """The shard and its index in a local folder, as far as they can be had; what is missing is found there."""
    for name, whole in ((shard.index, True), (shard.file, deep)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = place.size(name)
        if size is None:
            continue
        with path.open("wb") as file:
            if whole:
                for chunk in place.stream(name):
                    file.write(chunk)
            else:
                file.truncate(size)  # takes no room; only its size is looked at
    yield
    (folder / shard.file).unlink(missing_ok=True)
