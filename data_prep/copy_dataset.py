"""Copying a prepared dataset between folders and remote storage: every byte is checked on its way."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath

from data_prep.annotations.object_report import ODD_OBJECTS_NAME
from data_prep.console import ProgressBar, progress_bar, stored_size
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest, parse_manifest
from data_prep.dataset.places import Folder, Place, place_of, sha256_of
from data_prep.errors import DataPrepError
from data_prep.output_folder import REJECTED_NAME, exclusive_folder
from data_prep.shards.shard import WORK_FOLDER
from data_prep.storage.files import remove_temporaries

# Files under way; each holds about three pieces of 8 MiB.
THREADS = 4
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class DatasetFile:
    """A file that the manifest accounts for; an index's size isn't in the manifest."""

    name: str
    sha256: str
    size: int | None = None


def dataset_files(manifest: DatasetManifest) -> list[DatasetFile]:
    """All files of a dataset but the manifest and the list of rejected inputs."""
    shards = [
        shard for split in manifest.splits.values() for part in split.formats.values() for shard in part
    ]
    return [DatasetFile(shard.index, shard.index_sha256) for shard in shards] + [
        DatasetFile(shard.file, shard.sha256, shard.bytes) for shard in shards
    ]


def copy_dataset(
    source: str,
    destination: str,
    *,
    verify: bool = False,
    progress: Callable[[str], None] = print,
    threads: int = THREADS,
) -> DatasetManifest:
    """Copy a prepared dataset; run again, it goes on where it was interrupted.

    What is read is checked against the manifest's SHA-256 before it appears at the destination, and the manifest is
    written last, so neither a damaged nor an unfinished copy passes for a dataset. Files that are there already are
    kept: in a folder if their SHA-256 is right, on remote storage if their size is (with `verify`: their SHA-256).

    Args:
        source, destination: folders or URLs.
        verify: read back what was uploaded.
        progress: takes lines of text.
        threads: files at a time.

    Raises:
        DataPrepError: the source is no intact dataset, the destination holds another one or can't be written.
    """
    origin, target = place_of(source), place_of(destination)
    if str(origin) == str(target):
        raise DataPrepError(f"{origin} can't be copied onto itself")
    content = origin.read(MANIFEST_NAME)
    manifest = parse_manifest(content, f"{origin}/{MANIFEST_NAME}")
    with _held(target):
        _expect_no_other(target, content, manifest)
        files = dataset_files(manifest)
        total = sum(file.size or 0 for file in files)
        with progress_bar("copying", total, "B") as bar, ThreadPoolExecutor(threads) as pool:
            job = _Copy(origin, target, verify, progress, files, bar)
            try:
                list(pool.map(job.file, job.files))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for name in (REJECTED_NAME, ODD_OBJECTS_NAME):
            if origin.size(name) is not None:
                target.write(name, partial(origin.stream, name))
        target.write(MANIFEST_NAME, lambda: iter([content]))
        job.report(last=True)
    return manifest


@contextmanager
def _held(target: Place) -> Iterator[None]:
    """A folder is held for this copy alone, and swept; object stores need neither."""
    if not isinstance(target, Folder):
        yield
        return
    if (target.path / WORK_FOLDER).exists():
        raise DataPrepError(f"{target} holds an unfinished data-prep job: choose another folder")
    try:
        with exclusive_folder(target.path):
            for folder in (target.path, *(path for path in target.path.iterdir() if path.is_dir())):
                remove_temporaries(folder)
            yield
    except DataPrepError as error:
        raise DataPrepError(str(error).removeprefix("output.path: ")) from error.__cause__


def _expect_no_other(target: Place, content: bytes, manifest: DatasetManifest) -> None:
    if target.size(MANIFEST_NAME) is None:
        return
    found = target.read(MANIFEST_NAME)
    if found != content:
        other = parse_manifest(found, f"{target}/{MANIFEST_NAME}")
        what = f"{other.name} {other.digest[:19]}…"
        if other.digest == manifest.digest:
            what = "the same samples in other shards"
        raise DataPrepError(
            f"{target} holds another dataset ({what}) than {manifest.name} {manifest.digest[:19]}…: "
            "choose another destination, or delete it first"
        )


@dataclass
class _Copy:
    origin: Place
    target: Place
    verify: bool
    progress: Callable[[str], None]
    files: list[DatasetFile]
    bar: ProgressBar
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: int = 0
    _kept: int = 0
    _bytes: int = 0
    _told: float = field(default_factory=time.monotonic)

    def file(self, file: DatasetFile) -> None:
        """Copy one file, unless it is there."""
        size = file.size if file.size is not None else self.origin.size(file.name)
        if size is None:
            raise DataPrepError(
                f"{self.origin}: {PurePosixPath(file.name)} is missing, the dataset is incomplete"
            )
        kept = self._is_there(file, size)
        if kept:
            self.bar.advance(file.size or 0)
        else:
            self.target.write(file.name, lambda: self._checked(file, size))
            self._expect_arrived(file, size)
        with self._lock:
            self._done += 1
            self._kept += kept
            self._bytes += 0 if kept else size
        self.report()

    def report(self, last: bool = False) -> None:
        """A line every few seconds, and at the end."""
        with self._lock:
            now = time.monotonic()
            if not last and (self.bar.is_shown or now - self._told < _SECONDS_BETWEEN_LINES):
                return
            self._told = now
            line = f"{self._done:,} of {len(self.files):,} files: {stored_size(self._bytes)} copied"
            self.progress(f"{line}, {self._kept:,} files were there" if self._kept else line)

    def _is_there(self, file: DatasetFile, size: int) -> bool:
        if self.target.size(file.name) != size:
            return False
        compare = self.verify or isinstance(self.target, Folder)
        return not compare or sha256_of(self.target, file.name) == file.sha256

    def _checked(self, file: DatasetFile, size: int) -> Iterator[bytes]:
        """The source's pieces; raises at their end, before they are committed, if they aren't the manifest's."""
        digest, count, sent = hashlib.sha256(), 0, False
        try:
            for chunk in self.origin.stream(file.name):
                digest.update(chunk)
                count += len(chunk)
                self.bar.advance(len(chunk) if file.size is not None else 0)
                yield chunk
            sent = True
        finally:
            if not sent and file.size is not None:  # it is sent again
                self.bar.advance(-count)
        if count != size or digest.hexdigest() != file.sha256:
            raise DataPrepError(
                f"{self.origin}/{file.name} is damaged ({count:,} bytes, SHA-256 {digest.hexdigest()[:12]}…; the "
                f"manifest has {file.sha256[:12]}…): repair the dataset (`convmlp data repair`), then copy again"
            )

    def _expect_arrived(self, file: DatasetFile, size: int) -> None:
        if isinstance(self.target, Folder):
            return
        arrived = self.target.size(file.name)
        if arrived != size or (self.verify and sha256_of(self.target, file.name) != file.sha256):
            raise DataPrepError(
                f"{self.target}/{file.name} did not arrive as it was sent ({arrived} bytes of {size:,}): copy again"
            )
