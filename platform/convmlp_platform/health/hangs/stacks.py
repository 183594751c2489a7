"""The place where a process stands: its state as the kernel sees it, that of its readers, and all its Python stacks.

Nothing is needed of the process but that it once called `register_stacks`: the stacks are written by a C signal
handler, also while the interpreter is busy in C or waits for a lock.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from pathlib import Path
from typing import TextIO

from convmlp_platform.health.hangs.process_view import ProcessView, children_of, look_at
from convmlp_platform.health.hangs.waiting import IDLE, WaitsFor, waits_for

SIGNAL = signal.SIGUSR2
_POLL_S = 0.02
# Nothing more has come for this long: the dump is whole. A thread's stack is written in well under a millisecond.
_SETTLED_S = 0.1
# A process that waits for a disk may be woken by now or in an hour.
_DISK_S = 1.0

_files: dict[Path, TextIO] = {}


def register_stacks(path: Path) -> None:
    """From now on this process, and those it forks, append the stacks of all threads to `path` when asked to.

    Raises:
        OSError: the file can't be opened.
    """
    file = path.open("a", encoding="utf-8")
    faulthandler.register(SIGNAL, file=file, all_threads=True, chain=False)
    _files[path] = file  # faulthandler keeps the number of the descriptor only


def collect_stacks(pid: int, path: Path, timeout: float = 3.0) -> str:
    """How the process and its children stand, and its stacks, for a person to read.

    Takes up to `timeout` seconds; a stopped process can't answer, and is not waited for. Never raises: what could not
    be found out is said in the text.
    """
    deadline = time.monotonic() + timeout
    view = look_at(pid)
    if view is None:
        return f"process {pid}: is gone\n"
    readers = [reader for child in children_of(pid) if (reader := look_at(child))]
    lines = [f"process {view}", *(f"  child {reader}" for reader in readers)]
    dump = _dump(view, path, deadline)
    stacks = [_titled(view, dump)]
    if waits_for(dump) is WaitsFor.DATA:  # readers were forked later, and answer into the same file
        at_work = [reader for reader in readers if reader.catches(SIGNAL) and IDLE not in str(reader)]
        stacks += [_titled(reader, _dump(reader, path, deadline)) for reader in at_work]
    return "\n".join([*lines, "", *stacks])


def _titled(view: ProcessView, dump: str) -> str:
    return f"Python stacks of {view.pid} ({view.name}):\n{dump.rstrip()}\n"


def _dump(view: ProcessView, path: Path, deadline: float) -> str:
    """The stacks that the process writes now, or why there are none."""
    if view.state in "Tt":
        return "none: it is stopped and can't answer"
    if not view.catches(SIGNAL):  # it would die of the signal
        return "none: it has not got as far as to answer (register_stacks)"
    if view.state == "D":
        deadline = min(deadline, time.monotonic() + _DISK_S)
    try:
        before = path.stat().st_size
        os.kill(view.pid, SIGNAL)
    except OSError as error:
        return f"none: {error.strerror}"
    size, grown = before, 0.0
    while (now := time.monotonic()) < deadline and not (grown and now - grown > _SETTLED_S):
        time.sleep(_POLL_S)
        found = path.stat().st_size
        if found != size:
            size, grown = found, time.monotonic()
    with path.open("rb") as file:
        file.seek(before)
        return file.read().decode(errors="replace") or "none: no answer"
