"""Durable files: temporary name → fsync → rename → fsync of the folder."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import CDLL, c_int, c_int64, c_uint
from pathlib import Path
from typing import Any, BinaryIO

TEMP_PREFIX = ".tmp-"
_HASH_CHUNK_BYTES = 1 << 20
_C_LIBRARY = CDLL(None)
_SYNC_FILE_RANGE_WRITE = 2
"""Begin, and wait for nothing."""


def _temporary(path: Path) -> Path:
    """The name is drawn anew each time, so a half-dead writer of an earlier run can never write into the file of
    this one; `remove_temporaries` sweeps what a killed writer left."""
    return path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(4)}-{path.name}")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of `path` for writing; on success it is durable and named `path`."""
    temporary = _temporary(path)
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class GatheredWriter:
    """Appends many pieces to an open file with few system calls and without copying them.

    Gathered are 256 kB: 40 µs for an image of 107 kB, 46 µs one by one, 70 µs through Python's buffer; with 4 MB,
    which no processor cache holds, 156 µs.
    """

    _GATHERED_BYTES = 1 << 18
    _GATHERED_PIECES = 512
    """The system takes 1,024."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._write_back = WriteBack(file.fileno())
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._hash: Any = hashlib.sha256()
        self.position = 0
        """Place of the next piece, in bytes from the file's start."""

    @property
    def sha256(self) -> str | None:
        """Of all that was written; None where it wasn't written from start to end."""
        return None if self._hash is None else self._hash.hexdigest()

    def write(self, content: bytes) -> None:
        """Append a piece."""
        if self._hash is not None:  # now, while a processor cache holds it
            self._hash.update(content)
        self._pieces.append(content)
        self._waiting += len(content)
        self.position += len(content)
        if self._waiting >= self._GATHERED_BYTES or len(self._pieces) >= self._GATHERED_PIECES:
            self.flush()

    def seek(self, position: int) -> None:
        """Go on elsewhere."""
        self.flush()
        self._hash = None
        self._file.seek(position)
        self.position = position
        self._write_back = WriteBack(self._file.fileno(), position)

    def flush(self) -> None:
        """Hand all pieces to the system."""
        if self._waiting:
            written = os.writev(self._file.fileno(), self._pieces)
            if written < self._waiting:  # a signal, or more than 2 GB
                rest = memoryview(b"".join(self._pieces))[written:]
                while rest:
                    rest = rest[os.write(self._file.fileno(), rest) :]
        self._pieces, self._waiting = [], 0
        self._write_back.reached(self.position)


class WriteBack:
    """Has the disk begin with what an open file has got so far, 8 MiB at a time: the fsync at its end finds most of it
    done. Nothing is promised; where the system or the file system doesn't know how, nothing happens."""

    _BYTES = 1 << 23

    def __init__(self, descriptor: int, start: int = 0) -> None:
        self._descriptor, self._begun = descriptor, start

    def reached(self, position: int) -> None:
        """All bytes from the start to `position` have been written."""
        if (size := position - self._begun) >= self._BYTES:
            begin_write_back(self._descriptor, self._begun, size)
            self._begun = position


def begin_write_back(descriptor: int, start: int, size: int) -> None:
    """Of `size` bytes from `start` on, by Linux's sync_file_range(2)."""
    if (begin := getattr(_C_LIBRARY, "sync_file_range", None)) is not None:
        begin(c_int(descriptor), c_int64(start), c_int64(size), c_uint(_SYNC_FILE_RANGE_WRITE))


class AtomicFiles:
    """Several files that all get their names at the end, or none of them if the `with` block fails.

    Disks make files durable at once as fast as one after the other, and while the program does something else.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor()
        self._open: dict[Path, BinaryIO] = {}
        self._synced: dict[Path, Future[None]] = {}

    def __enter__(self) -> AtomicFiles:
        return self

    def open(self, path: Path) -> BinaryIO:
        """A temporary neighbour of `path`, open for writing and reading; its `name` tells where it is."""
        self._open[path] = _temporary(path).open("w+b")
        return self._open[path]

    def sync(self, path: Path) -> None:
        """Begin to make a file durable that is complete by now."""
        file = self._open[path]
        file.flush()
        self._synced[path] = self._pool.submit(os.fsync, file.fileno())

    def drop(self, path: Path) -> None:
        """Forget a file."""
        with self._open.pop(path) as file:
            Path(file.name).unlink()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._name_all()
        finally:
            self._pool.shutdown()
            for file in self._open.values():
                file.close()
                Path(file.name).unlink(missing_ok=True)

    def _name_all(self) -> None:
        for path in self._open.keys() - self._synced.keys():
            self.sync(path)
        for path in self._open:
            self._synced[path].result()
        for path, file in self._open.items():
            Path(file.name).replace(path)
        for folder in {path.parent for path in self._open}:
            sync_folder(folder)


def read_file(path: str) -> bytes:
    """A whole file; 13 µs for 107 kB, where `Path.read_bytes` takes 19 µs."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        content = os.read(descriptor, size)
        while len(content) < size and (more := os.read(descriptor, size - len(content))):
            content += more
        return content
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Make `path` hold exactly `content`, or leave it as it was.

    Without `durable` that holds for killed processes only: after a power cut it may be missing, old or empty.
    """
    if durable:
        with atomic_file(path) as file:
            file.write(content)
        return
    temporary = _temporary(path)
    temporary.write_bytes(content)
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    """Make renames and deletions inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed writers left in `folder` (not in its subfolders)."""
    if folder.is_dir():
        for path in folder.glob(f"{TEMP_PREFIX}*"):
            path.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
