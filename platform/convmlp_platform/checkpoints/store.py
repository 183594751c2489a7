"""Where checkpoints lie: what the checkpointer asks of a folder or of remote storage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from convmlp_platform.checkpoints.layout import FileRecord
from data_prep.urls import is_url, local_path

Chunks = Callable[[], Iterable[memoryview | bytes]]
"""A file's content in order; may be asked again when storage failed half-way."""

CHUNK_BYTES = 8 << 20


class Draft(Protocol):
    """A checkpoint being written, which nobody sees before its commit. Several processes may write one draft.

    Raises (all methods): OSError or DataPrepError where the storage refuses.
    """

    def write(self, name: str, chunks: Chunks) -> FileRecord:
        """Make a file durable; its SHA-256 is of the bytes handed to the storage."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file of another writer of this draft, who may still be writing it; None before."""
        ...

    def commit(self, manifest: bytes) -> None:
        """Make the checkpoint exist, durably. One that exists under this step gives way."""
        ...

    def discard(self, names: Iterable[str]) -> None:
        """Remove files that this process wrote; never fails."""
        ...


class Store(Protocol):
    """The checkpoints of one run.

    Raises (all methods): OSError or DataPrepError where the storage refuses.
    """

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        ...

    def location(self, step: int) -> str:
        """The path or URL of a checkpoint."""
        ...

    def draft(self, step: int, token: str, expected_bytes: int) -> Draft:
        """Begin to write; all writers of one checkpoint give the same token, and no two checkpoints' are equal.

        Raises:
            OSError: ENOSPC where `expected_bytes` don't fit.
        """
        ...

    def read(self, step: int, name: str) -> bytes:
        """A small file of a committed step."""
        ...

    def stream(self, step: int, name: str) -> Iterator[bytes]:
        """A file of a committed step, in pieces."""
        ...

    def on_disk(self, step: int, names: Iterable[str]) -> AbstractContextManager[Path]:
        """A local folder that has these files of a step while the context lasts."""
        ...

    def sync(self) -> None:
        """Make commits that other processes began durable."""
        ...

    def point_at(self, step: int) -> None:
        """Move `latest`."""
        ...

    def remove(self, step: int) -> None:
        """Remove a committed step; interrupted, it leaves nothing that looks like a checkpoint."""
        ...

    def sweep(self, token: str) -> None:
        """Remove what interrupted writers left, but for the drafts with this token."""
        ...


def open_store(location: str | Path) -> Store:
    """The store in a folder (a path or `file://` URL) or under a URL (`s3://`, `gs://`, ...)."""
    folder = local_path(str(location)) if is_url(str(location)) else Path(location)
    if folder is not None:
        from convmlp_platform.checkpoints.local_store import LocalStore

        return LocalStore(folder)
    from convmlp_platform.checkpoints.remote_store import RemoteStore

    return RemoteStore(str(location))
