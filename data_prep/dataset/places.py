"""Places where a prepared dataset may lie: a folder, or a URL. Both read, write and compare its files the same way."""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from data_prep.errors import DataPrepError
from data_prep.storage.files import atomic_file, sha256_file
from data_prep.storage.remote_files import file_size, open_filesystem, read_file, stream
from data_prep.storage.retry import retried
from data_prep.storage.urls import is_url, join_url, local_path, shown

Chunks = Callable[[], Iterator[bytes]]
_CHUNK_BYTES = 8 << 20


class Place(Protocol):
    """The files of a dataset by name (a relative path).

    Raises (all methods): DataPrepError naming the file and what to do.
    """

    def __str__(self) -> str:
        """As it may be printed."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of the file, None where there is none."""
        ...

    def read(self, name: str) -> bytes:
        """A small file."""
        ...

    def stream(self, name: str) -> Iterator[bytes]:
        """A file of any size, in pieces."""
        ...

    def write(self, name: str, chunks: Chunks) -> None:
        """Make the file hold these pieces, or leave it as it was where they raise; `chunks` may be asked twice."""
        ...


def place_of(location: str) -> Place:
    """The folder (a path or `file://` URL) or remote place that a location names."""
    folder = local_path(location)
    return Remote(location) if folder is None else Folder(folder)


def sha256_of(place: Place, name: str) -> str:
    """Hex SHA-256 of a file, read whole."""
    if isinstance(place, Folder):
        return sha256_file(place.path / name)
    digest = hashlib.sha256()
    for chunk in place.stream(name):
        digest.update(chunk)
    return digest.hexdigest()


class Folder:
    """A dataset's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def size(self, name: str) -> int | None:
        """Bytes of the file, None where there is none."""
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """A small file."""
        return b"".join(self.stream(name))

    def stream(self, name: str) -> Iterator[bytes]:
        """A file of any size, in pieces."""
        path = self.path / name
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise DataPrepError(f"can't read {path}: {error.strerror}") from error

    def write(self, name: str, chunks: Chunks) -> None:
        """Make the file hold these pieces, durably."""
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                for chunk in chunks():
                    file.write(chunk)
        except OSError as error:
            raise DataPrepError(f"can't write {path}: {error.strerror}") from error


class Remote:
    """A dataset's URL."""

    def __init__(self, url: str) -> None:
        if not is_url(url):
            raise ValueError(f"{url!r} is not a URL")
        self.url = url

    def __str__(self) -> str:
        return shown(self.url)

    def size(self, name: str) -> int | None:
        """Bytes of the file, None where there is none."""
        try:
            return file_size(join_url(self.url, name))
        except DataPrepError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def read(self, name: str) -> bytes:
        """A small file."""
        return read_file(join_url(self.url, name))

    def stream(self, name: str) -> Iterator[bytes]:
        """A file of any size, in pieces."""
        size = self.size(name)
        if size is None:
            raise DataPrepError(f"{shown(join_url(self.url, name))} is missing, or its server tells no size")
        return stream(join_url(self.url, name), size, _CHUNK_BYTES)

    def write(self, name: str, chunks: Chunks) -> None:
        """Upload in parts; the object appears when all of them are there."""
        url = join_url(self.url, name)
        if urllib.parse.urlsplit(url).scheme in ("http", "https"):
            raise DataPrepError(f"{shown(url)}: plain HTTP can't be written to: use s3://, gs:// or a folder")
        retried(lambda: _upload(url, chunks), url)


def _upload(url: str, chunks: Chunks) -> None:
    fs, path = open_filesystem(url)
    file: Any = fs.open(path, "wb", block_size=_CHUNK_BYTES, autocommit=False)
    try:
        for chunk in chunks():
            file.write(chunk)
        file.close()
    except BaseException:
        file.discard()
        # Not closed in the usual way, which would send what is buffered.
        file.closed = True
        raise
    file.commit()
