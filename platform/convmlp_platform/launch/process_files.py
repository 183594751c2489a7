"""Between an agent and its training process: small files in the node's memory, and a signal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

FINAL_STOP = signal.SIGUSR1
"""Save and end, and say goodbye to MLflow, as the driver ends too. After SIGTERM the run is started again at once."""

_MEMORY = Path("/dev/shm")
_PREFIX = "convmlp-agent-"


@dataclass(frozen=True)
class ProcessFiles:
    """Files of one process."""

    heartbeat: Path
    stacks: Path
    marks: Path
    """Seconds from the fork to `begun`, `joined`, `loaded` and `stepped` (its first step is finished), and the `step`
    it goes on after; JSON."""
    outcome: Path
    """Written once, at the end: see `process.finished` and `process.failed`."""

    @classmethod
    def within(cls, folder: Path, start: int) -> ProcessFiles:
        """Those of the driver's `start`-th attempt."""
        names = ("heartbeat", "stacks.txt", "marks.json", "outcome.json")
        return cls(*(folder / f"{start}-{name}" for name in names))


def make_folder() -> tuple[Path, int]:
    """A folder for an agent and its processes, and a lock on it: a descriptor that says, as long as any process has
    it open, that the folder is in use. Folders of agents that were killed are removed.
    """
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            os.close(_locked(left))
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    return folder, _locked(folder)


def _locked(folder: Path) -> int:
    """Raises OSError where the folder is in use, or another user's."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
