"""RUN/driver.json: which driver trains a run, so that two never do.

A driver renews its lease every few seconds. That of a dead driver is taken over: on the same machine when its process
is gone, from elsewhere when it isn't renewed for `STALE_S`, seen from here, because clocks of machines differ.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from convmlp_platform.errors import LaunchError
from data_prep.files import write_atomically

logger = logging.getLogger(__name__)
NAME = "driver.json"
RENEW_S, STALE_S = 3.0, 30.0
_LOOK_S = 0.25


@dataclass(frozen=True)
class Holder:
    """A driver. `machine` tells machines and containers apart, `born` processes that get the same id; `renewed`
    changes at each renewal."""

    host: str
    pid: int
    machine: str
    born: float
    token: str
    renewed: float


def refuse_if_held(run: Path) -> None:
    """Raise LaunchError where another driver of this run surely lives. Doesn't wait, and writes nothing."""
    holder = _read(run / NAME)
    if holder is not None and _lives(holder):
        raise _held(run, holder)


@contextmanager
def lease(run: Path) -> Iterator[threading.Event]:
    """Hold the lease of the run in this folder within the block; yields an event that is set if it gets lost.

    Waits up to `STALE_S` where the last driver ran elsewhere and didn't end its lease.

    Raises:
        LaunchError: another driver lives, or the folder can't be written.
    """
    path, mine, lost, done = run / NAME, _myself(), threading.Event(), threading.Event()
    try:
        run.mkdir(parents=True, exist_ok=True)
        _take(run, mine)
    except OSError as error:
        raise LaunchError(f"checkpoint.path: can't write to {run}: {error.strerror}") from None
    renewal = threading.Thread(target=_renew, args=(path, mine, lost, done), daemon=True)
    renewal.start()
    try:
        yield lost
    finally:
        done.set()
        renewal.join(timeout=RENEW_S)
        if (holder := _read(path)) is not None and holder.token == mine.token:
            with contextlib.suppress(OSError):
                path.unlink()


def _take(run: Path, mine: Holder) -> None:
    path = run / NAME
    holder, since = _read(path), time.monotonic()
    while holder is not None and not _is_dead(holder):
        if _lives(holder) or holder.renewed != (now := _read(path) or holder).renewed:
            raise _held(run, holder)
        if time.monotonic() - since > STALE_S:
            break
        time.sleep(_LOOK_S)
        holder = now if path.exists() else None
    _write(path, mine)
    if holder is not None:  # another may be taking it over just now: the last one wins
        time.sleep(_LOOK_S)
        found = _read(path)
        if found is not None and found.token != mine.token:
            raise _held(run, found)


def _renew(path: Path, mine: Holder, lost: threading.Event, done: threading.Event) -> None:
    while not done.wait(RENEW_S):
        try:
            found = _read(path)
            if found is not None and found.token != mine.token:
                lost.set()
                return
            _write(path, mine)
        except OSError as error:  # a full disk is no reason to stop training
            logger.warning("%s can't be renewed: %s", path, error.strerror)


def _write(path: Path, mine: Holder) -> None:
    write_atomically(path, json.dumps(asdict(mine) | {"renewed": time.time()}).encode())


def _read(path: Path) -> Holder | None:
    """The holder; None where there is none, or what is there says nothing."""
    try:
        fields = json.loads(path.read_bytes())
        return Holder(**{name: fields[name] for name in Holder.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _myself() -> Holder:
    pid = os.getpid()
    born = psutil.Process(pid).create_time()
    return Holder(socket.gethostname(), pid, _machine(), born, secrets.token_hex(8), time.time())


def _machine() -> str:
    """Two processes with the same value see each other's process ids."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts) or socket.gethostname()


def _lives(holder: Holder) -> bool:
    """Surely: its process is on this machine and runs."""
    if holder.machine != _machine():
        return False
    try:
        process = psutil.Process(holder.pid)
        return abs(process.create_time() - holder.born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_dead(holder: Holder) -> bool:
    return holder.machine == _machine() and not _lives(holder)


def _held(run: Path, holder: Holder) -> LaunchError:
    return LaunchError(
        f"run {run.name!r} is being trained by another driver, process {holder.pid} on {holder.host}: wait for its "
        f"end, stop it, or give this one a name of its own (--set name=...)"
    )
