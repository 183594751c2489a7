"""Processes that end with the one that started them, however that ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading

_PARENT_DEATH_SIGNAL = 1


def die_with_parent() -> None:
    """In a child: be killed when the thread that forked it is gone. Linux; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def children_die_with_us() -> None:
    """From now on what this process's main thread forks (data loaders' readers) is killed when this process is."""
    os.register_at_fork(before=_remember, after_in_child=_follow)


_forks_in_main = False


def _remember() -> None:
    global _forks_in_main
    _forks_in_main = threading.current_thread() is threading.main_thread()


def _follow() -> None:
    # A thread may end long before its process, and would take the child with it.
    if _forks_in_main:
        die_with_parent()


def kill_family(pid: int) -> None:
    """Kill the process group that `pid` leads, and `pid` where it hasn't come to lead one yet."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
