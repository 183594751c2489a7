"""Is a prepared dataset what its manifest says? Lists every problem of a folder or a URL instead of stopping at one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_prep.console import progress_bar
from data_prep.dataset.checksums import dataset_digest, read_back
from data_prep.dataset.index import ShardIndex, read_index
from data_prep.dataset.manifest import (
    MANIFEST_NAME,
    DatasetManifest,
    ShardInfo,
    Task,
    load_manifest,
    manifest_path,
    parse_manifest,
)
from data_prep.dataset.places import Remote
from data_prep.errors import DataPrepError, Unreachable
from data_prep.sources.archives.tar_members import tar_members
from data_prep.storage.files import sha256_file
from data_prep.writers.ffcv_writer import MODE_OF_ENCODING, read_beton
from data_prep.writers.webdataset_writer import ANNOTATION_SUFFIX


@dataclass
class VerifyReport:
    """The findings; the dataset is good when `ok`."""

    path: Path | str
    manifest: DatasetManifest | None = None
    num_shards: int = 0
    num_payloads: int = 0
    """Payloads whose checksum was computed (deep only)."""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No problem was found."""
        return not self.problems


def verify(path: str | Path, *, deep: bool = True) -> VerifyReport:
    """Check a dataset against its manifest and indexes.

    Args:
        path: the dataset's folder or manifest file.
        deep: also read every byte: SHA-256 of files, XXH3 of each payload, the formats' own tables.
            Otherwise files, sizes, indexes, agreement of the formats and the dataset digest.
    """
    folder = manifest_path(path).parent
    report = VerifyReport(folder)
    try:
        report.manifest = load_manifest(path)
    except DataPrepError as error:
        report.problems.append(str(error))
        return report
    return _verify_shards(report, report.manifest, folder, deep, lambda shard: nullcontext())


def verify_remote(url: str, *, deep: bool = True) -> VerifyReport:
    """Check a dataset at a URL against its manifest and indexes, as `verify` does a folder: its files come one after
    the other into the system's temporary folder, which needs room for the largest shard and all indexes.

    Args:
        url: the dataset's.
        deep: read every byte; otherwise manifest, indexes, sizes and the dataset digest.

    Raises:
        Unreachable: the storage can't be asked, which says nothing about the dataset.
    """
    place = Remote(url)
    report = VerifyReport(str(place))
    try:
        report.manifest = parse_manifest(place.read(MANIFEST_NAME), f"{place}/{MANIFEST_NAME}")
    except Unreachable:
        raise
    except DataPrepError as error:
        report.problems.append(str(error))
        return report
    with TemporaryDirectory(prefix="convmlp-verify-") as name:
        folder = Path(name)
        here = partial(_fetched, place, folder, deep)
        return _verify_shards(report, report.manifest, folder, deep, here)


@contextmanager
def _fetched(place: Remote, folder: Path, deep: bool, shard: ShardInfo) -> Iterator[None]:
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


def _verify_shards(
    report: VerifyReport,
    manifest: DatasetManifest,
    folder: Path,
    deep: bool,
    here: Callable[[ShardInfo], AbstractContextManager[None]],
) -> VerifyReport:
    """The report with the problems of all shards, each looked at while `here` keeps it in the folder."""
    indexes: dict[str, dict[str, list[ShardIndex]]] = {split: {} for split in manifest.splits}
    complete = True
    parts = [
        (split, name, shards)
        for split, info in manifest.splits.items()
        for name, shards in info.formats.items()
    ]
    total = sum(shard.bytes for _, _, shards in parts for shard in shards)
    with progress_bar("verifying", total, "B") as bar:
        for split, format_name, shards in parts:
            found = []
            for shard in shards:
                with here(shard):
                    found.append(_verify_shard(folder, manifest.task, format_name, shard, deep, report))
                bar.advance(shard.bytes)
            complete = complete and None not in found
            indexes[split][format_name] = [index for index in found if index is not None]
    if complete:
        report.problems += _verify_whole(manifest, indexes)
    return report


def _verify_shard(
    folder: Path, task: Task, format_name: str, shard: ShardInfo, deep: bool, report: VerifyReport
) -> ShardIndex | None:
    """Check one shard; its index if that is the manifest's, for nothing can be said with another one."""
    report.num_shards += 1
    index = None
    try:
        if sha256_file(folder / shard.index) == shard.index_sha256:
            index = read_index(folder / shard.index, full=deep)
        else:
            report.problems.append(f"{shard.index}: SHA-256 differs from the manifest's")
    except FileNotFoundError:
        report.problems.append(f"{shard.index} is missing: run its data-prep job again")
    except OSError as error:
        report.problems.append(f"{shard.index}: can't be read: {error.strerror or error}")
    except DataPrepError as error:
        report.problems.append(str(error))
    if index is not None and len(index) != shard.num_samples:
        report.problems.append(
            f"{shard.index}: lists {len(index)} samples, manifest says {shard.num_samples}"
        )
    try:
        size = (folder / shard.file).stat().st_size
        if size != shard.bytes:
            report.problems.append(f"{shard.file}: has {size} bytes, manifest says {shard.bytes}")
        if deep:
            report.problems += _verify_content(folder, task, format_name, shard, index, report)
    except OSError as error:
        report.problems.append(f"{shard.file}: can't be read: {error.strerror or error}")
    return index


def _verify_content(
    folder: Path,
    task: Task,
    format_name: str,
    shard: ShardInfo,
    index: ShardIndex | None,
    report: VerifyReport,
) -> Iterator[str]:
    path = folder / shard.file
    with path.open("rb") as file:
        found = read_back(file, index)
    report.num_payloads += found.num_payloads
    if found.sha256 != shard.sha256:
        yield f"{shard.file}: SHA-256 differs from the manifest's"
    yield from (f"{shard.file}: {damage}" for damage in found.damaged)
    if index is None:
        return
    compare = _compare_tar if format_name == "webdataset" else _compare_beton
    try:
        yield from (f"{shard.file}: {problem}" for problem in compare(path, task, index))
    except (DataPrepError, ValueError, OverflowError) as error:
        yield f"{shard.file}: its structure is damaged: {error}"


def _compare_tar(path: Path, task: Task, index: ShardIndex) -> Iterator[str]:
    """Do the tar's own headers and `.cls` files say what the index says?"""
    suffix = ANNOTATION_SUFFIX.get(task, "cls")
    with path.open("rb") as file:
        members = {member.name: member for member in tar_members(file.fileno(), "the tar")}
        images = {
            member.offset: (name.rpartition(".")[0], member.size)
            for name, member in members.items()
            if not name.endswith(f".{suffix}")
        }
        if len(members) != 2 * len(index):
            yield f"has {len(members)} members for {len(index)} samples, expected two each"
        for row in map(index.row, range(len(index))):
            if images.get(row.offset) != (row.key, row.length):
                yield f"the tar header of {row.key} disagrees with the index"
            other = members.get(f"{row.key}.{suffix}")
            if task != "classification":
                place = (other.offset, other.size) if other else None
                if place != (row.annotation_offset, row.annotation_length):
                    yield f"the tar header of {row.key}'s annotation disagrees with the index"
                continue
            label = str(row.label).encode()
            stored = os.pread(file.fileno(), len(label), other.offset) if other else None
            if other is None or other.problem or other.size != len(label) or stored != label:
                yield f"the label file of {row.key} disagrees with the index"


def _compare_beton(path: Path, task: Task, index: ShardIndex) -> Iterator[str]:
    """Do the beton's metadata and allocation table say what the index says?"""
    samples = read_beton(path, task)
    if len(samples) != len(index):
        yield f"its header says {len(samples)} samples, the index {len(index)}"
        return
    modes = np.array([MODE_OF_ENCODING.get(encoding, -1) for encoding in index.encoding.tolist()])
    expected = {
        "mode": modes,
        "width": index.width,
        "height": index.height,
        "offset": index.offset,
        "length": index.length,
        "label": index.label,
        "annotation_offset": index.annotation_offset,
        "annotation_length": index.annotation_length,
    }
    for name, column in expected.items():
        for position in np.flatnonzero(samples[name] != column).tolist():
            yield f"the metadata of {index.key(position)} disagrees with the index in {name}"


def _verify_whole(
    manifest: DatasetManifest, indexes: dict[str, dict[str, list[ShardIndex]]]
) -> Iterator[str]:
    """Labels, unique keys, agreement between the formats, and the dataset digest of every format."""
    for split, per_format in indexes.items():
        names = sorted(per_format)
        for name in names:
            labels = np.concatenate([index.label for index in per_format[name]])
            if manifest.task == "classification" and not (
                labels.min() >= 0 and labels.max() < manifest.num_classes
            ):
                yield f"{split}, {name}: a label lies outside the {manifest.num_classes} classes"
            keys = [key for index in per_format[name] for key in index.keys.to_pylist()]
            if len(set(keys)) != len(keys):
                yield f"{split}, {name}: a key occurs twice"
        for name in names[1:]:
            for first, second in zip(per_format[names[0]], per_format[name], strict=False):
                if not _same_samples(first, second):
                    yield f"{first.path.name} and {second.path.name} of {split} hold different samples"
    for name in manifest.formats:
        digest = dataset_digest(
            manifest.classes,
            {split: per_format[name] for split, per_format in indexes.items()},
            num_turned=manifest.num_turned,
        )
        if digest != manifest.digest:
            yield f"{name}: the dataset digest is {digest}, manifest says {manifest.digest}"


def _same_samples(first: ShardIndex, second: ShardIndex) -> bool:
    return (
        first.keys.equals(second.keys)
        and np.array_equal(first.label, second.label)
        and np.array_equal(first.height, second.height)
        and np.array_equal(first.width, second.width)
        and np.array_equal(first.source_hash, second.source_hash)
        and np.array_equal(first.annotation_length, second.annotation_length)
        and np.array_equal(first.annotation_checksum, second.annotation_checksum)
    )
