"""A folder of fetched pieces of files, shared by all processes of a node and kept below a size.

A piece is fetched by one process while the others wait: whoever holds `flock` on `NAME.part` fetches into it and
renames it to `NAME`. The kernel drops the lock of a killed process, and the next one starts that file anew, so
there is nothing to clean up and no age at which a lock counts as stale. A file system without `flock` gets locks in
the folder `locks` instead (`data_prep.storage.locks`), which is slower.

Nothing is synced to disk. A piece that lost its bytes in a power cut has another size or fails its samples'
checksums, is then forgotten (`discard`) and fetched again.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convmlp_platform.errors import StorageUnreachable
from data_prep.errors import os_cause
from data_prep.storage.locks import Held, flocked

Fetch = Callable[[], bytes]
KEPT_PREFIX = "index-"
"""Names that are evicted last: small pieces that every process needs."""

_PART = ".part"
_USAGE, _LOCKS = "usage", "locks"
# How far an eviction goes below the limit, so that the folder is listed once in many fetches.
_EVICT_TO = 0.9


@dataclass(frozen=True)
class CacheOptions:
    """The folder on each node for pieces of remote datasets, and the size in bytes that they stay below."""

    dir: Path
    bytes: int


class CachedPiece:
    """An open piece; it stays readable when it is evicted meanwhile."""

    def __init__(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self.descriptor, self.size, self.inode = descriptor, status.st_size, status.st_ino

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the piece; fewer where it was cut."""
        return os.pread(self.descriptor, length, offset)

    def __del__(self) -> None:
        os.close(self.descriptor)


class BlockCache:
    """The pieces in `options.dir`. Threads, processes and jobs of one user may share one folder.

    The total stays below `options.bytes`, but for what is being fetched if that alone is more. Least recently opened
    pieces go first (the time is kept as the file's mtime, because many mounts don't keep access times).

    Raises:
        StorageUnreachable: the folder can't be made or written, or has no room.
    """

    def __init__(self, options: CacheOptions) -> None:
        # A folder of its own within the user's, because whatever lies in it may be evicted.
        self.folder, self.limit = Path(options.dir) / "convmlp-blocks", options.bytes
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed(error) from error

    def open(self, name: str, size: int | None) -> CachedPiece | None:
        """The piece, None where it is not there or hasn't the size it must have."""
        path = self.folder / name
        try:
            piece = CachedPiece(os.open(path, os.O_RDONLY))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(error) from error
        if size is not None and piece.size != size:
            path.unlink(missing_ok=True)
            return None
        self._touch(path)
        return piece

    def has(self, name: str) -> bool:
        """Whether the piece is there."""
        return (self.folder / name).exists()

    def open_or_fetch(self, name: str, size: int | None, fetch: Fetch) -> CachedPiece:
        """The piece, fetched if it isn't there; one process fetches it however many want it."""
        while True:
            found = self.open(name, size)
            if found is not None:
                return found
            try:
                with self._part(name) as part:
                    if part is not None and (made := self._fill(name, size, part, fetch)):
                        return made
            except OSError as error:
                raise self._failed(error) from error

    def discard(self, name: str, piece: CachedPiece | None = None) -> bool:
        """Forget a piece; not if it is another one than `piece`, fetched anew by another process meanwhile."""
        path = self.folder / name
        try:
            if piece is None or path.stat().st_ino == piece.inode:
                path.unlink()
        except FileNotFoundError:
            return piece is not None
        return True

    @contextmanager
    def _part(self, name: str) -> Iterator[int | None]:
        """`NAME.part`, locked for this caller alone; None where another one renamed or removed it meanwhile."""
        path = self.folder / (name + _PART)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with flocked(descriptor, self.folder / _LOCKS / path.name):
                yield descriptor if _is_named(path, descriptor) else None
        finally:
            os.close(descriptor)

    def _fill(self, name: str, size: int | None, part: int, fetch: Fetch) -> CachedPiece | None:
        path, temporary = self.folder / name, self.folder / (name + _PART)
        if (found := self.open(name, size)) is not None:
            temporary.unlink(missing_ok=True)
            return found
        try:
            content = fetch()
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._reserve(part, len(content))
        try:
            _write(part, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._reserve(part, len(content), make_room=True)
            _write(part, content)
        piece = CachedPiece(os.open(temporary, os.O_RDONLY))
        with self._usage():  # so that a listing finds it under exactly one name
            temporary.rename(path)
        return piece

    def _reserve(self, part: int, size: int, *, make_room: bool = False) -> None:
        """Count `size` bytes in and give the part that size, evicting where they don't fit.

        The count in the file `usage` is raised before the bytes are there and only lowered by listing the folder,
        so that a killed process makes it too high at worst.
        """
        os.ftruncate(part, 0)
        with self._usage() as usage:
            stored = os.pread(usage, 8, 0)
            used = struct.unpack("<q", stored)[0] if len(stored) == 8 else None
            if used is None or used + size > self.limit or make_room:
                used = self._evict(size, make_room)
            os.pwrite(usage, struct.pack("<q", used + size), 0)
            os.ftruncate(part, size)

    @contextmanager
    def _usage(self) -> Iterator[int]:
        """The count's file, locked."""
        descriptor = os.open(self.folder / _USAGE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with flocked(descriptor, self.folder / _LOCKS / _USAGE):
                yield descriptor
        finally:
            os.close(descriptor)

    def _evict(self, size: int, make_room: bool) -> int:
        """Remove the oldest pieces where `size` more would pass the limit; the bytes left."""
        used, pieces = 0, []
        for entry in os.scandir(self.folder):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if entry.name in (_USAGE, _LOCKS):
                continue
            if entry.name.endswith(_PART) and self._remove_if_stale(Path(entry.path)):
                continue
            used += status.st_size
            if not entry.name.endswith(_PART):
                kept = entry.name.startswith(KEPT_PREFIX)
                pieces.append((kept, status.st_mtime_ns, status.st_size, entry.path))
        goal = used // 2 if make_room else int(_EVICT_TO * self.limit) - size
        if used + size <= self.limit and not make_room:
            return used
        for _kept, _time, bytes_, path in sorted(pieces):
            if used <= goal:
                break
            Path(path).unlink(missing_ok=True)
            used -= bytes_
        return used

    def _remove_if_stale(self, path: Path) -> bool:
        """Remove the `.part` of a process that was killed; False for one that is being written, which is locked."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            with flocked(descriptor, self.folder / _LOCKS / path.name, wait=False):
                if _is_named(path, descriptor):
                    path.unlink()
                return True
        except (BlockingIOError, Held):
            return False
        finally:
            os.close(descriptor)

    def _touch(self, path: Path) -> None:
        """Mark as used now; a folder that may only be read is served as it is."""
        try:
            os.utime(path)
        except (FileNotFoundError, PermissionError):
            return

    def _failed(self, error: OSError) -> StorageUnreachable:
        """No sample is damaged because it can't be cached."""
        where = f"data.cache_dir (={self.folder})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageUnreachable(
                f"{where}: the disk is full: lower data.cache_bytes (={self.limit}) below what is free there"
            )
        return StorageUnreachable(f"{where} can't be used: {error.strerror or error}", cause=os_cause(error))


def _write(descriptor: int, content: bytes) -> None:
    view, at = memoryview(content), 0
    while at < len(content):
        at += os.pwrite(descriptor, view[at:], at)


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
