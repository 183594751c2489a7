"""Storage of checkpoints: the operations that the checkpointer asks of a folder or of remote storage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from convmlp_platform.checkpoints.layout import FileRecord
from data_prep.storage.urls import is_url, local_path

Chunks = Callable[[], Iterable[memoryview | bytes]]
"""A file's content in order; may be asked again when storage failed half-way."""

CHUNK_BYTES = 8 << 20


class CheckpointDraft(Protocol):
    """A checkpoint being written, which nobody sees before its commit. Several processes may write one draft.

    All of it may be done again after a failure, also after one that came too late to prevent what failed.

    Raises (all methods): OSError or DataPrepError where the storage refuses.
    """

    def write(self, name: str, chunks: Chunks) -> FileRecord:
        """Make a file durable; its SHA-256 is of the bytes handed to the storage."""
        ...

    def hand_in(self, number: int, content: bytes) -> None:
        """Tell the first writer that writer `number` is done: all at once or not at all."""
        ...

    def handed_in(self, number: int) -> bytes | None:
        """Returns the content that writer `number` has handed in; None before."""
        ...

    def commit(self, manifest: bytes) -> None:
        """Make the checkpoint exist, durably: that, or what another writer has committed as this step stays whole.

        Raises:
            OSError: EEXIST where another has committed this step since the draft was begun, ENOENT where some of the
                draft is lost.
        """
        ...

    def discard(self, names: Iterable[str]) -> None:
        """Remove files that this process wrote and no commit can name; never fails."""
        ...


class Store(Protocol):
    """The checkpoints of one run.

    Raises (all methods): OSError or DataPrepError where the storage refuses.
    """

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        ...

    def commit_of(self, step: int) -> str | None:
        """A name for what is committed as this step now, which no other commit has; None where nothing is."""
        ...

    def location(self, step: int) -> str:
        """The path or URL of a checkpoint."""
        ...

    def draft(
        self, step: int, token: str, expected_bytes: int, replaces: str | None = None
    ) -> CheckpointDraft:
        """Begin to write; all writers of one checkpoint give the same token, and no two checkpoints' are equal.

        Args:
            replaces: the commit (`commit_of`) that is damaged and shall give way.

        Raises:
            OSError: ENOSPC where `expected_bytes` don't fit.
        """
        ...

    def read(self, step: int, place: str) -> bytes:
        """A small file of a committed step."""
        ...

    def stream(self, step: int, place: str) -> Iterator[bytes]:
        """A file of a committed step, in pieces."""
        ...

    def on_disk(self, step: int, files: Mapping[str, FileRecord]) -> AbstractContextManager[Path]:
        """A local folder that has these files of a step under their names while the context lasts."""
        ...

    def sync(self) -> None:
        """Make commits that other processes began durable."""
        ...

    def point_at(self, step: int) -> None:
        """Move `latest`."""
        ...

    def tidy(self, step: int, places: Collection[str], token: str) -> None:
        """Remove what the writers of a committed step, or older ones, left beside its files."""
        ...

    def remove(self, step: int) -> None:
        """Remove a committed step; interrupted, it leaves nothing that looks like a checkpoint."""
        ...

    def sweep(self, token: str) -> None:
        """Remove the drafts that are older than this token (`layout.is_older`): their writers were interrupted."""
        ...


def open_store(location: str | Path) -> Store:
    """The store in a folder (a path or `file://` URL) or under a URL (`s3://`, `gs://`, ...)."""
    folder = local_path(str(location)) if is_url(str(location)) else Path(location)
    if folder is not None:
        from convmlp_platform.checkpoints.stores.local_store import LocalStore

        return LocalStore(folder)
    from convmlp_platform.checkpoints.stores.remote_store import RemoteStore

    return RemoteStore(str(location))
