"""Who holds a lock: a process, on this machine or another, and whether it lives."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil  # type: ignore[import-untyped]
from pydantic import Field

logger = logging.getLogger(__name__)

_KILLED_WITHIN_S = 5.0


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    `machine` tells machines and containers apart, `born` processes that get the same id (on Linux in clock ticks since
    the machine's start, which setting the clock doesn't change). `parent`: the process it works for, as (id, born).
    """

    host: str
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    machine: str
    born: float
    token: str
    parent: tuple[int, float] | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, on this machine."""
        return self.machine == _machine()

    @property
    def is_seen(self) -> bool:
        """Whether it can be looked at: it is on this machine, and not hidden from this user."""
        return self.is_here and not _is_hidden(self.pid)

    @property
    def is_dead(self) -> bool:
        """Surely: it was on this machine, and its process is gone."""
        return self.is_here and _state(self.pid, self.born) is None

    @property
    def is_stopped(self) -> bool:
        """Its process is on this machine and stopped by a signal."""
        return self.is_here and _state(self.pid, self.born) == "T"

    @property
    def is_orphan(self) -> bool:
        """It worked for a process of this machine that has ended."""
        return self.is_here and self.parent is not None and _state(*self.parent) is None

    def __str__(self) -> str:
        stopped = f" (stopped: `kill -CONT {self.pid}` lets it go on, `kill -9 {self.pid}` ends it)"
        return f"process {self.pid} on {self.host}{stopped if self.is_stopped else ''}"


def myself(*, helper: bool) -> Holder:
    """This process, as the holder of a lock; `helper`: it works for its parent, and is nothing without it."""
    pid, parent = os.getpid(), os.getppid()
    born = _born(pid)
    assert born is not None
    works_for = (parent, parent_born) if helper and (parent_born := _born(parent)) is not None else None
    return Holder(socket.gethostname(), pid, _machine(), born, secrets.token_hex(8), works_for)


def killed_orphan(holder: Holder, path: Path) -> bool:
    """End a holder of the lock at `path` that is stopped and works for nobody any more; whether it is dead."""
    if not (holder.is_stopped and holder.is_orphan):
        return False
    logger.warning("%s: process %d, left stopped by one that has ended, is killed", path, holder.pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(holder.pid, signal.SIGKILL)
    until = time.monotonic() + _KILLED_WITHIN_S
    while not holder.is_dead and time.monotonic() < until:
        time.sleep(0.01)
    return holder.is_dead


def _machine() -> str:
    """Two processes with the same value see each other's process ids."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts) or socket.gethostname()


def _born(pid: int) -> float | None:
    found = _process(pid)
    return found and found[1]


def _state(pid: int, born: float) -> str | None:
    """The state of this process as `ps` has it; None: it is gone, or only its exit code is left."""
    found = _process(pid)
    return found[0] if found is not None and found[1] == born and found[0] not in "ZX" else None


def _process(pid: int) -> tuple[str, float] | None:
    """State and time of birth of the process with this id, None where there is none."""
    if Path("/proc/self/stat").exists():
        try:
            # Behind the command's name in parentheses, which may contain spaces and parentheses.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return fields[0].decode(), float(fields[19])
    try:
        process = psutil.Process(pid)
        state = {psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_STOPPED: "T"}.get(process.status(), "S")
        return state, process.create_time()
    except psutil.NoSuchProcess:
        return None


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process, of another user, which the machine doesn't let us look at."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return _process(pid) is None
    except OSError:
        pass
    return False
