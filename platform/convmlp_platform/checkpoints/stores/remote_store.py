"""Checkpoints on remote storage by URL, which has no rename: the manifest, written last, is the commit.

Objects appear whole or not at all, so a step whose manifest is there is all there. Every save writes below a key of
its own (its token), so a writer that was taken for dead and wakes up can't touch what its successor has written; and
a manifest is only put where there is none (If-None-Match, where the storage knows that).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from convmlp_platform.checkpoints.layout import (
    LATEST,
    MANIFEST,
    FileRecord,
    is_older,
    parse_manifest,
    step_name,
    step_of,
)
from convmlp_platform.checkpoints.stores.store import Chunks
from data_prep.dataset.places import Remote
from data_prep.errors import DataPrepError
from data_prep.storage.remote_files import open_filesystem
from data_prep.storage.retry import retried
from data_prep.storage.urls import join_url

logger = logging.getLogger(__name__)
_UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP)


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

    def commit_of(self, step: int) -> str | None:
        """The hash of the manifest, which names its writers' keys."""
        manifest = self.manifest(step)
        return None if manifest is None else _hash(manifest)

    def manifest(self, step: int) -> bytes | None:
        """A step's manifest; None where it isn't committed."""
        place = self._place(step)
        return None if place.size(MANIFEST) is None else place.read(MANIFEST)

    def location(self, step: int) -> str:
        """The URL of a checkpoint."""
        return join_url(self.url, step_name(step))

    def draft(self, step: int, token: str, expected_bytes: int, replaces: str | None = None) -> RemoteDraft:
        """Begin to write below the token."""
        return RemoteDraft(self, step, token, replaces)

    def read(self, step: int, place: str) -> bytes:
        """A small file of a committed step."""
        return self._place(step).read(place)

    def stream(self, step: int, place: str) -> Iterator[bytes]:
        """A file of a committed step, in pieces."""
        return self._place(step).stream(place)

    @contextmanager
    def on_disk(self, step: int, files: Mapping[str, FileRecord]) -> Iterator[Path]:
        """A temporary folder with the files downloaded."""
        with tempfile.TemporaryDirectory(prefix="convmlp-checkpoint-") as folder:
            for name, record in files.items():
                with Path(folder, name).open("wb") as file:
                    for chunk in self.stream(step, record.place(name)):
                        file.write(chunk)
            yield Path(folder)

    def sync(self) -> None:
        """Objects are durable once written."""

    def point_at(self, step: int) -> None:
        """Move `latest`."""
        Remote(self.url).write(LATEST, lambda: iter([step_name(step).encode()]))

    def tidy(self, step: int, places: Collection[str], token: str) -> None:
        """Remove objects of this save and of older ones that the manifest doesn't name."""
        named = {MANIFEST, *places}
        left = (key for key in self.keys(step_name(step)) if key not in named)
        self.remove_keys(step, [key for key in left if _is_over(key, token) or key.startswith(f"{token}/")])

    def remove(self, step: int) -> None:
        """The manifest first: without it the step doesn't exist."""
        self.remove_keys(step, [MANIFEST])
        self.remove_keys(step, self.keys(step_name(step)))

    def sweep(self, token: str) -> None:
        """Objects below the tokens of older saves, of steps without manifest."""
        found: dict[str, list[str]] = {}
        for path in self.keys():
            name, _, key = path.partition("/")
            if step_of(name) is not None:
                found.setdefault(name, []).append(key)
        for name, keys in found.items():
            if MANIFEST not in keys:
                self.remove_keys(step_of(name) or 0, [key for key in keys if _is_over(key, token)])

    def keys(self, below: str = "") -> dict[str, int]:
        """The objects (below a step), relative to it, and their bytes."""
        url = join_url(self.url, below) if below else self.url

        def listed() -> dict[str, int]:
            fs, path = open_filesystem(url)
            fs.invalidate_cache()
            return {
                str(name).removeprefix(f"{path}/"): int(info["size"])
                for name, info in fs.find(path, detail=True).items()
            }

        return retried(listed, url)

    def remove_keys(self, step: int, keys: Iterable[str]) -> None:
        """Remove objects of a step; those that are gone already are no error."""
        url = self.location(step)

        def remove(key: str) -> None:
            fs, path = open_filesystem(url)
            with suppress(FileNotFoundError):
                fs.rm_file(f"{path}/{key}")

        for key in keys:
            retried(lambda key=key: remove(key), url)  # type: ignore[misc]

    def _place(self, step: int) -> Remote:
        return Remote(self.location(step))


class RemoteDraft:
    """Objects below a step and the token of a save. See `store.CheckpointDraft`."""

    def __init__(self, store: RemoteStore, step: int, token: str, replaces: str | None = None) -> None:
        self._store, self._step, self._token, self._replaces = store, step, token, replaces
        self._place = Remote(store.location(step))

    def write(self, name: str, chunks: Chunks) -> FileRecord:
        """Upload an object."""
        size, sha256 = 0, ""

        def hashing() -> Iterator[bytes]:
            nonlocal size, sha256
            digest, size = hashlib.sha256(), 0
            for chunk in chunks():
                digest.update(chunk)
                size += len(chunk)
                yield bytes(chunk)
            sha256 = digest.hexdigest()

        self._place.write(self._key(name), hashing)
        return FileRecord(size, sha256, self._key(name))

    def hand_in(self, number: int, content: bytes) -> None:
        """Upload a note."""
        self._place.write(self._key(_hand_in(number)), lambda: iter([content]))

    def handed_in(self, number: int) -> bytes | None:
        """Another writer's note."""
        key = self._key(_hand_in(number))
        return None if self._place.size(key) is None else self._place.read(key)

    def commit(self, manifest: bytes) -> None:
        """Put the manifest where there is none, and look whether all that it names is still there.

        A writer that was taken for dead may have lost its objects to its successor by now: it takes its manifest back.
        """
        if self._put(manifest) != manifest:
            raise OSError(errno.EEXIST, "another writer has committed this step")
        named = parse_manifest(manifest, self._store.location(self._step))
        there = self._store.keys(step_name(self._step))
        lost = [name for name, record in named.items() if there.get(record.place(name)) != record.bytes]
        if lost:
            if self._store.manifest(self._step) == manifest:
                self._store.remove_keys(self._step, [MANIFEST])
            raise OSError(errno.ENOENT, f"{lost[0]} was removed before the commit")

    def _put(self, manifest: bytes) -> bytes:
        """Write the manifest unless there is one; the one that is there then."""
        url = self._store.location(self._step)

        def put() -> bytes:
            found = self._store.manifest(self._step)
            if found is not None and _hash(found) != self._replaces:
                return found
            fs, path = open_filesystem(url)
            try:
                _put_object(fs, f"{path}/{MANIFEST}", manifest, new=found is None)
            except Exception:
                # It may be there all the same: the answer was lost, or another writer's came first.
                found = self._store.manifest(self._step)
                if found is None or _hash(found) == self._replaces:
                    raise
                return found
            return manifest

        return retried(put, url)

    def discard(self, names: Iterable[str]) -> None:
        """Remove objects that this process wrote, as far as the storage lets us."""
        try:
            self._store.remove_keys(self._step, map(self._key, names))
        except (OSError, DataPrepError) as error:
            logger.warning("%s", error)

    def _key(self, name: str) -> str:
        return f"{self._token}/{name}"


def _put_object(fs: Any, path: str, content: bytes, new: bool) -> None:
    if new:
        try:
            fs.pipe_file(path, content, mode="create")
            return
        except (NotImplementedError, TypeError):
            pass
        except OSError as error:
            if error.errno not in _UNKNOWN:
                raise
    fs.pipe_file(path, content)


def _is_over(key: str, token: str) -> bool:
    """Whether an object is an older save's, or lies where no save writes any more."""
    folder, slash, _ = key.partition("/")
    return not slash or is_older(folder, token)


def _hand_in(number: int) -> str:
    """The note in which a writer says what it wrote; no part of the checkpoint."""
    return f"hand-in-{number:05d}.json"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
