"""Shards in a folder of this machine, or of a file system that it mounts."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from convmlp_platform.errors import DataError, StorageUnreachable, data_error
from data_prep.dataset.index import ShardIndex, read_index
from data_prep.dataset.manifest import ShardInfo
from data_prep.errors import DataPrepError, may_pass
from data_prep.storage.files import sha256_file

# What a reader process keeps open: a shuffle window's blocks may lie in as many shards as it has blocks (64 by
# default), for each of the streams that a rank reads. Processes are commonly limited to 1,024 open files and
# 65,530 maps.
_OPEN_FILES = 256
_OPEN_INDEXES = 4096


class LocalStorage:
    """`Storage` over local files, opened when they are first read.

    Reads are positioned (`pread`), so forked reader processes may share one object; unlike maps they turn an
    I/O error or a file that is cut while in use into an error instead of killing the process.
    """

    def __init__(self, folder: Path, shards: Sequence[ShardInfo]) -> None:
        self._folder, self._shards = folder, shards
        self._file = lru_cache(maxsize=_OPEN_FILES)(self._open)
        self._checked: set[int] = set()
        self._index = lru_cache(maxsize=_OPEN_INDEXES)(self._read_index)

    def index(self, number: int) -> ShardIndex:
        """The shard's index, mapped; its SHA-256 is checked once."""
        return self._index(number)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`, or fewer where the file ends."""
        file = self._file(number)
        try:
            return os.pread(file.descriptor, length, offset)
        except OSError as error:
            raise _unreadable(self._path(number), error) from error

    def discard(self, number: int, offset: int, length: int) -> bool:
        """Drop the bytes from the system's page cache, so that they come from the disk again."""
        if not hasattr(os, "posix_fadvise"):
            return False
        os.posix_fadvise(self._file(number).descriptor, offset, length, os.POSIX_FADV_DONTNEED)
        return True

    def ahead(self, samples: Iterable[int]) -> None:
        """Local reads need no hint: the system reads ahead by itself."""

    def check_files(self) -> None:
        """Whether every shard is there with its size.

        Raises:
            DataError: naming the first that is not.
        """
        for number, shard in enumerate(self._shards):
            path = self._path(number)
            try:
                _check_size(path, path.stat().st_size, shard)
            except OSError as error:
                raise _unreadable(path, error) from error

    def _path(self, number: int) -> Path:
        return self._folder / self._shards[number].file

    def _open(self, number: int) -> _OpenFile:
        path = self._path(number)
        try:
            file = _OpenFile(path)
        except OSError as error:
            raise _unreadable(path, error) from error
        _check_size(path, os.fstat(file.descriptor).st_size, self._shards[number])
        return file

    def _read_index(self, number: int) -> ShardIndex:
        shard = self._shards[number]
        path = self._folder / shard.index
        try:
            if number not in self._checked:
                if sha256_file(path) != shard.index_sha256:
                    raise DataError(
                        f"sample index {path} is damaged: its SHA-256 is not the manifest's; "
                        f"`convmlp data repair {self._folder}` restores it"
                    )
                self._checked.add(number)
            return read_index(path)
        except OSError as error:
            if may_pass(error):
                raise _unreadable(path, error) from error
            raise DataError(
                f"sample index {path} can't be read: {error.strerror}; "
                f"`convmlp data repair {self._folder}` restores it"
            ) from error
        except DataPrepError as error:
            raise data_error(error) from error


class _OpenFile:
    """A file descriptor that is closed with its last user."""

    def __init__(self, path: Path) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _unreadable(path: Path, error: OSError) -> DataError:
    """An I/O error may be that of one sector, so that the sample's twin or neighbour can take its place; other errors
    that may pass are the whole storage's."""
    if not may_pass(error):
        return DataError(f"shard {path} can't be read: {error.strerror}; run its data-prep job again")
    kind = DataError if error.errno == errno.EIO else StorageUnreachable
    return kind(
        f"{path} can't be read: {error.strerror}; check its disk or mount, then start again: nothing is lost",
        cause="storage",
    )


def _check_size(path: Path, found: int, shard: ShardInfo) -> None:
    if found != shard.bytes:
        raise DataError(
            f"shard {path} has {found} bytes, its manifest says {shard.bytes}: it was cut or changed"
        )
