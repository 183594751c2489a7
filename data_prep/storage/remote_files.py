"""Files by URL (`s3://`, `gs://`, `https://`, ...) through fsspec."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from data_prep.errors import DataPrepError
from data_prep.storage.retry import MANIFEST_SAYS, Patience, retried
from data_prep.storage.urls import scrubbed, shown


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path within it.

    One for all threads of a process, and never one made before a fork: that serves the event loop of the parent.
    It isn't given up either, because closing it in the child would wait for that loop.

    Raises:
        DataPrepError: the protocol is unknown, or its package isn't installed.
    """
    import fsspec.core

    parts = urlsplit(url)
    key = (os.getpid(), parts.scheme, parts.netloc)
    try:
        with _creating:
            if key not in _filesystems:
                _filesystems[key] = fsspec.core.url_to_fs(url, **_options(parts.scheme))[0]
    except ImportError as error:
        extra = {"s3": "[s3]", "s3a": "[s3]", "gs": "[gs]", "gcs": "[gs]"}.get(parts.scheme)
        remedy = f"pip install 'convmlp-platform{extra}'" if extra else str(error)
        raise DataPrepError(f"{shown(url)}: {parts.scheme}:// needs a missing package: {remedy}") from None
    except ValueError as error:
        raise DataPrepError(f"{shown(url)}: {scrubbed(str(error))}") from None
    fs = _filesystems[key]
    return fs, fs._strip_protocol(url)


_filesystems: dict[tuple[int, str, str], Any] = {}
_creating = threading.Lock()


def _renew_lock() -> None:
    global _creating
    _creating = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _options(scheme: str) -> dict[str, Any]:
    """aiohttp waits five minutes for a silent server; the others have short limits of their own."""
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    return {"client_kwargs": {"timeout": timeout}}


def read_file(url: str, patience: Patience | None = None) -> bytes:
    """The whole (small) file.

    Raises:
        DataPrepError: it can't be read; the message names the URL, the cause and what to do.
    """

    def read() -> bytes:
        fs, path = open_filesystem(url)
        return bytes(fs.cat_file(path))

    return retried(read, url, patience)


def read_range(url: str, start: int, end: int, patience: Patience | None = None) -> bytes:
    """Bytes start..end-1 of the file, never fewer or more.

    Raises:
        DataPrepError: as `read_file`; also a file that ends early, and a server that can't send parts of a file.
    """

    def read() -> bytes:
        fs, path = open_filesystem(url)
        return bytes(fs.cat_file(path, start=start, end=end))

    content = b""
    for _ in range(_SHORT_READS):
        content = retried(read, url, patience)
        if len(content) == end - start:
            return content
        if len(content) > end - start:
            raise DataPrepError(
                f"{shown(url)}: the server sends the whole file where a part is asked for (no range requests): "
                "serve the dataset with one that can (nginx, S3), or copy it with `convmlp data copy`"
            )
    raise DataPrepError(
        f"{shown(url)}: bytes {start}..{end} were asked for, {len(content)} came: the file is shorter than "
        f"{MANIFEST_SAYS}"
    )


# A cut connection may look like a short file; one that stays short is one.
_SHORT_READS = 3


def file_size(url: str) -> int | None:
    """Bytes of the file, None where the server doesn't say.

    Raises:
        DataPrepError: as `read_file`; `FileNotFoundError` is its cause where there is no such file.
    """

    def ask() -> int | None:
        fs, path = open_filesystem(url)
        fs.invalidate_cache()
        size = fs.info(path)["size"]
        return None if size is None else int(size)

    return retried(ask, url)


def stream(url: str, size: int, chunk: int = 8 << 20) -> Iterator[bytes]:
    """The file in pieces; each is asked for again on its own where the connection fails.

    Raises:
        DataPrepError: as `read_range`.
    """
    for start in range(0, size, chunk):
        yield read_range(url, start, min(start + chunk, size))
