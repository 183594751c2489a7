"""Checkpoints in a folder: stage → fsync → one rename → fsync of the folder.

Files are written by plain system calls, so that the tests can stop a save before, in and after each.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from convmlp_platform.checkpoints.layout import (
    LATEST,
    MANIFEST,
    RETIRED,
    STAGING,
    FileRecord,
    is_older,
    parse_manifest,
    step_name,
    step_of,
)
from convmlp_platform.checkpoints.stores.store import CHUNK_BYTES, Chunks
from data_prep.storage.files import WriteBack

_TEMPORARY = ".tmp-"
_HAND_IN = "hand-in-"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class LocalStore:
    """A folder, which all workers mount. See `store.Store`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        try:
            paths = list(self.folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(step for path in paths if (step := step_of(path.name)) is not None)

    def commit_of(self, step: int) -> str | None:
        """The number of the folder: each commit renames another one."""
        return _identity(self.folder / step_name(step))

    def location(self, step: int) -> str:
        """The path of a checkpoint."""
        return str(self.folder / step_name(step))

    def draft(self, step: int, token: str, expected_bytes: int, replaces: str | None = None) -> LocalDraft:
        """Begin to write, unless the disk is too full for it."""
        _make_folder(self.folder)
        self._check_room(expected_bytes)
        staging = self.folder / f"{STAGING}{step_name(step)}-{token}"
        staging.mkdir(exist_ok=True)
        return LocalDraft(self.folder, staging, step, replaces)

    def _check_room(self, expected_bytes: int) -> None:
        disk = os.statvfs(self.folder)
        missing = expected_bytes - disk.f_bavail * disk.f_frsize
        if missing > 0:
            raise OSError(
                errno.ENOSPC,
                f"the disk is full: {expected_bytes:,} bytes are needed, {missing:,} of them are missing",
            )

    def read(self, step: int, place: str) -> bytes:
        """A small file of a committed step."""
        return (self.folder / step_name(step) / place).read_bytes()

    def stream(self, step: int, place: str) -> Iterator[bytes]:
        """A file of a committed step, in pieces."""
        with (self.folder / step_name(step) / place).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    @contextmanager
    def on_disk(self, step: int, files: Mapping[str, FileRecord]) -> Iterator[Path]:
        """The step's own folder."""
        yield self.folder / step_name(step)

    def sync(self) -> None:
        """Make commits durable that other processes began."""
        _sync_folder(self.folder)

    def point_at(self, step: int) -> None:
        """Move `latest` in one rename."""
        _write(self.folder / LATEST, lambda: [step_name(step).encode()])
        _sync_folder(self.folder)

    def tidy(self, step: int, places: Collection[str], token: str) -> None:
        """Remove what the other writers handed in."""
        for path in list((self.folder / step_name(step)).iterdir()):
            if path.name.startswith((_HAND_IN, _TEMPORARY)) and path.name not in places:
                path.unlink(missing_ok=True)

    def remove(self, step: int) -> None:
        """Rename first, then delete: a crash while deleting leaves nothing that looks like a checkpoint."""
        _remove_folder(_set_aside(self.folder, step))

    def sweep(self, token: str) -> None:
        """Rename abandoned drafts first, then delete: who wakes up and commits one still has all of it, or nothing."""
        for path in list(self.folder.iterdir()) if self.folder.is_dir() else []:
            draft = _DRAFT.fullmatch(path.name)
            if draft and is_older(draft[1], token):
                path = path.rename(self.folder / f"{RETIRED}{path.name.removeprefix(STAGING)}")
            if path.name.startswith(RETIRED):
                _remove_folder(path)
            elif path.name.startswith(_TEMPORARY):
                path.unlink(missing_ok=True)


_DRAFT = re.compile(rf"{re.escape(STAGING)}step-\d+-(.*)")


class LocalDraft:
    """A staging folder beside the committed steps. See `store.CheckpointDraft`."""

    def __init__(self, folder: Path, staging: Path, step: int, replaces: str | None = None) -> None:
        self._folder, self._staging, self._step, self._replaces = folder, staging, step, replaces

    def write(self, name: str, chunks: Chunks) -> FileRecord:
        """Make a file durable under its name."""
        return _write(self._staging / name, chunks)

    def hand_in(self, number: int, content: bytes) -> None:
        """Leave a note beside the files."""
        _write(self._staging / _hand_in(number), lambda: [content])

    def handed_in(self, number: int) -> bytes | None:
        """Another writer's note."""
        try:
            return (self._staging / _hand_in(number)).read_bytes()
        except FileNotFoundError:
            return None

    def commit(self, manifest: bytes) -> None:
        """Rename the staging folder once all in it is durable. It never takes the place of a folder with files."""
        for name, record in parse_manifest(manifest, str(self._staging)).items():
            if (self._staging / name).stat().st_size != record.bytes:
                raise OSError(errno.ENOENT, f"{name} was changed before the commit")
        _write(self._staging / MANIFEST, lambda: [manifest])
        _sync_folder(self._staging)
        target = self._folder / step_name(self._step)
        replaced = None
        if self._replaces is not None and _identity(target) == self._replaces:
            replaced = _set_aside(self._folder, self._step)
        try:
            self._staging.rename(target)
        except OSError as error:
            if replaced is not None:
                with suppress(OSError):
                    replaced.rename(target)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise OSError(errno.EEXIST, "another writer has committed this step") from None
            raise
        _sync_folder(self._folder)
        if replaced is not None:
            _remove_folder(replaced)

    def discard(self, names: Iterable[str]) -> None:
        """Remove files that this process wrote, and the staging folder with the last of them."""
        for name in (*names, MANIFEST):
            with suppress(OSError):
                (self._staging / name).unlink()
        with suppress(OSError):
            self._staging.rmdir()


def _hand_in(number: int) -> str:
    """The note in which a writer says what it wrote; no part of the checkpoint."""
    return f"{_HAND_IN}{number:05d}.json"


def _identity(folder: Path) -> str | None:
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{found.st_dev}-{found.st_ino}-{found.st_mtime_ns}"


def _write(path: Path, chunks: Chunks) -> FileRecord:
    """Write and fsync a file, hashing on the way. It appears whole, also where one of this name is being read.

    Raises:
        OSError: what the disk said, with the bytes missing where it is full.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    try:
        record = _write_plainly(temporary, chunks)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return record


def _write_plainly(path: Path, chunks: Chunks) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    write_back = WriteBack(descriptor)
    try:
        for chunk in chunks():
            rest = memoryview(chunk)
            digest.update(rest)
            while rest:
                done = os.write(descriptor, rest)
                rest, size = rest[done:], size + done
                write_back.reached(size)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _NO_SPACE:
            wanted, name = sum(len(chunk) for chunk in chunks()), path.name.removeprefix(_TEMPORARY)
            raise OSError(
                error.errno, f"the disk is full: {wanted - size:,} of {wanted:,} bytes of {name} are missing"
            ) from None
        raise
    finally:
        os.close(descriptor)
    return FileRecord(size, digest.hexdigest())


def _make_folder(folder: Path) -> None:
    """Create a folder with its parents, each durable in the one above."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _set_aside(folder: Path, step: int) -> Path:
    """Take a step's name away; what it holds is to be removed."""
    retired = folder / f"{RETIRED}{step_name(step)}"
    _remove_folder(retired)
    (folder / step_name(step)).rename(retired)
    # Else a power loss could undo the rename and keep deletions that came after it.
    _sync_folder(folder)
    return retired


def _remove_folder(folder: Path) -> None:
    """Delete a flat folder, if it is there."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        folder.rmdir()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
