"""Checkpoints on remote storage by URL, which has no rename: the manifest, written last, is the commit.

Objects appear whole or not at all, so a step whose manifest is there is all there.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convmlp_platform.checkpoints.layout import LATEST, MANIFEST, FileRecord, step_name, step_of
from convmlp_platform.checkpoints.store import Chunks
from data_prep.errors import DataPrepError
from data_prep.places import Remote
from data_prep.remote_files import open_filesystem
from data_prep.retry import retried
from data_prep.urls import join_url

logger = logging.getLogger(__name__)


class RemoteStore:
    """A prefix of an object store. See `store.Store`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def steps(self) -> list[int]:
        """Committed steps, oldest first: those with a manifest."""

        def listed() -> list[str]:
            fs, path = open_filesystem(self.url)
            fs.invalidate_cache()
            return [str(found) for found in fs.glob(f"{path}/step-*/{MANIFEST}")]

        names = (found.rsplit("/", 2)[1] for found in retried(listed, self.url))
        return sorted(step for name in names if (step := step_of(name)) is not None)

    def location(self, step: int) -> str:
        """The URL of a checkpoint."""
        return join_url(self.url, step_name(step))

    def draft(self, step: int, token: str, expected_bytes: int) -> RemoteDraft:
        """Begin to write; a step that is there is no longer committed from now on."""
        return RemoteDraft(self, step)

    def read(self, step: int, name: str) -> bytes:
        """A small file of a committed step."""
        return self._place(step).read(name)

    def stream(self, step: int, name: str) -> Iterator[bytes]:
        """A file of a committed step, in pieces."""
        return self._place(step).stream(name)

    @contextmanager
    def on_disk(self, step: int, names: Iterable[str]) -> Iterator[Path]:
        """A temporary folder with the files downloaded."""
        with tempfile.TemporaryDirectory(prefix="convmlp-checkpoint-") as folder:
            for name in names:
                with Path(folder, name).open("wb") as file:
                    for chunk in self.stream(step, name):
                        file.write(chunk)
            yield Path(folder)

    def sync(self) -> None:
        """Objects are durable once written."""

    def point_at(self, step: int) -> None:
        """Move `latest`."""
        Remote(self.url).write(LATEST, lambda: iter([step_name(step).encode()]))

    def remove(self, step: int) -> None:
        """The manifest first: without it the step doesn't exist."""
        self.remove_objects(step, [MANIFEST])
        self.remove_objects(step, None)

    def sweep(self, token: str) -> None:
        """Objects of unfinished steps are overwritten when their step comes again, and removed with it."""

    def remove_objects(self, step: int, names: Iterable[str] | None) -> None:
        """Some objects of a step, or all (None)."""
        url = self.location(step)

        def remove() -> None:
            fs, path = open_filesystem(url)
            fs.invalidate_cache()
            if names is None:
                if fs.exists(path):
                    fs.rm(path, recursive=True)
                return
            for name in names:
                if fs.exists(f"{path}/{name}"):
                    fs.rm_file(f"{path}/{name}")

        retried(remove, url)

    def _place(self, step: int) -> Remote:
        return Remote(self.location(step))


class RemoteDraft:
    """A step's objects before its manifest. See `store.Draft`."""

    def __init__(self, store: RemoteStore, step: int) -> None:
        self._store, self._step = store, step
        self._place = Remote(store.location(step))

    def write(self, name: str, chunks: Chunks) -> FileRecord:
        """Upload an object."""
        sent: list[Any] = []

        def hashing() -> Iterator[bytes]:
            digest, size = hashlib.sha256(), 0
            for chunk in chunks():
                digest.update(chunk)
                size += len(chunk)
                yield bytes(chunk)
            sent[:] = [size, digest.hexdigest()]

        self._place.write(name, hashing)
        return FileRecord(*sent)

    def read(self, name: str) -> bytes | None:
        """A small object, None where there is none."""
        if self._place.size(name) is None:
            return None
        return self._place.read(name)

    def commit(self, manifest: bytes) -> None:
        """Write the manifest."""
        self._place.write(MANIFEST, lambda: iter([manifest]))

    def discard(self, names: Iterable[str]) -> None:
        """Remove objects that this process wrote, as far as the storage lets us."""
        try:
            self._store.remove_objects(self._step, names)
        except DataPrepError as error:
            logger.warning("%s", error)
