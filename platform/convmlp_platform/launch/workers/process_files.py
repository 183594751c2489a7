"""Folders of ours on a node, readable by their owner alone; and what passes between an agent and its training process:
small files in the node's memory, and a signal.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.storage.locks import take_flock

FINAL_STOP = signal.SIGUSR1
"""Save and end, and say goodbye to MLflow, as the driver ends too. After SIGTERM the run is started again at once."""

AGENT_PREFIX, RAY_PREFIX = "convmlp-agent-", "convmlp-ray-"
_MEMORY = Path("/dev/shm")
# Ray's sockets lie below its folder, and a socket's path may have 107 characters at most.
_LONGEST_PARENT = 20


@dataclass(frozen=True)
class ProcessFiles:
    """Files of one process."""

    heartbeat: Path
    stacks: Path
    marks: Path
    """Seconds from the fork to `begun`, `joined`, `loaded` and `stepped` (its first step is finished), and the `step`
    it goes on after; JSON."""
    outcome: Path
    """Written once, at the end: see `training_process.finished` and `failed`."""

    @classmethod
    def within(cls, folder: Path, start: int) -> ProcessFiles:
        """Those of the driver's `start`-th attempt."""
        names = ("heartbeat", "stacks.txt", "marks.json", "outcome.json")
        return cls(*(folder / f"{start}-{name}" for name in names))


def memory_folder() -> Path:
    """Returns the parent of an agent's folder: the node's memory file system if it is writable, else TMPDIR."""
    return _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def make_folder(prefix: str, parent: Path) -> tuple[Path, int]:
    """A folder of mode 0700, and a lock on it: a descriptor that says, as long as any process has it open, that the
    folder is in use. Folders of this prefix whose processes were killed are removed, where the file system has `flock`;
    elsewhere nobody can tell which those are, and they stay.
    """
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            lock, is_locked = _locked(left)
            if is_locked:
                shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock, _ = _locked(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # taken for one that was left behind, before it was locked
        if folder.exists():
            return folder, lock
        os.close(lock)


@contextlib.contextmanager
def held_folder(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold `flock` on a folder of mode 0700 within the block, where the file system has it.

    Args:
        wait: until nobody else holds it, and make the folder where there is none. Else OSError is raised.
    """
    while True:
        if wait:
            folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            take_flock(descriptor, wait=wait)
            if not _is_at(descriptor, folder):  # removed by the one who held it before
                if wait:
                    continue
                raise FileNotFoundError(folder)
            yield
            return
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def private_folder(prefix: str, parent: Path) -> Iterator[Path]:
    """A folder as of `make_folder`, for the time of the block."""
    folder, lock = make_folder(prefix, parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def folder_for_ray() -> Iterator[Path]:
    """Yields a folder for the sockets, logs and spilled objects of a Ray that we start, for the time of the block.

    Ray opens its folder to everybody (mode 0777), so it lies in a private one. The private folder is in TMPDIR if that
    name is short enough for sockets below it, else in /tmp.
    """
    wanted = tempfile.gettempdir()
    with private_folder(RAY_PREFIX, Path(wanted if len(wanted) <= _LONGEST_PARENT else "/tmp")) as folder:
        inner = folder / "r"
        inner.mkdir()
        yield inner


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _locked(folder: Path) -> tuple[int, bool]:
    """The folder's descriptor, and whether its file system could lock it.

    Raises OSError where the folder is in use, or another user's.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return descriptor, take_flock(descriptor, wait=False)
    except OSError:
        os.close(descriptor)
        raise
