"""The process that training processes are forked from: it has imported torch and the rest, so a start takes
milliseconds instead of ten seconds (`python -m`, started by `agent.Agent`).

It talks in lines of JSON over a pipe; the pipe's end means that the agent is gone, and it then kills what it forked.
It computes nothing and touches no GPU: threads, OpenMP's and CUDA's state don't survive a fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from convmlp_platform.launch.workers.process_tree import kill_family
from convmlp_platform.tracking.provenance.code_state import this_code
from data_prep.console import adapt_streams


class ForkServer:
    """At most one training process at a time: a fork that calls `become`."""

    def __init__(self, channel: Connection, become: Callable[[dict[str, Any]], NoReturn]) -> None:
        self.channel, self.become = channel, become
        self.child: int | None = None
        self._wake, wake = os.pipe()
        for descriptor in (self._wake, wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Fork, kill and report, until the agent is gone."""
        while True:
            ready = wait([self.channel, self._wake])
            if self._wake in ready:
                os.read(self._wake, 1024)
                self._reap()
            if self.channel in ready:
                try:
                    message: dict[str, Any] = json.loads(self.channel.recv_bytes())
                except (EOFError, OSError):
                    return
                if "end" in message:
                    return
                self._do(message)

    def end(self) -> None:
        """Leave nothing behind."""
        if self.child is not None:
            kill_family(self.child)
            os.waitpid(self.child, 0)

    def _do(self, message: dict[str, Any]) -> None:
        if "start" in message:
            self._fork(message["start"])
        elif self.child is not None and message["signal"] == signal.SIGKILL:
            kill_family(self.child)
        elif self.child is not None:
            os.kill(self.child, message["signal"])

    def _fork(self, settings: dict[str, Any]) -> None:
        child = os.fork()
        if child == 0:
            self._grow_up(settings)
        self.child = child
        self._tell(started=child)

    def _grow_up(self, settings: dict[str, Any]) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.channel.close()
            self.become(settings)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        if self.child is None:
            return
        pid, status = os.waitpid(self.child, os.WNOHANG)
        if pid:
            kill_family(pid)  # its readers, where it had no time to end them
            self.child = None
            self._tell(ended=pid, code=os.waitstatus_to_exitcode(status), at=time.time())

    def _tell(self, **fields: Any) -> None:
        self.channel.send_bytes(json.dumps(fields).encode())


def main(descriptor: int, folder: Path, modules: list[str]) -> None:
    """Serve the agent at the other end of `descriptor`; `folder` is removed at the end.

    The `modules` are imported as far as they can be; the last one must be there: its `main` is what a fork becomes.
    """
    channel = Connection(descriptor)
    adapt_streams()  # of the training processes, which print
    # Python 3.12 warns of forks while there are threads. Those of OpenBLAS and jemalloc provide for it.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    try:
        for module in modules[:-1]:
            # Whoever needs it meets the error again, and has an outcome for it.
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        entry = importlib.import_module(modules[-1])
        with contextlib.suppress(Exception):
            this_code()  # now: what is on the disk at a later fork may be other code than was imported
        # What the forked processes share stays shared: a collection would write to every object's page.
        gc.collect()
        gc.freeze()
        channel.send_bytes(json.dumps({"warm": True}).encode())
        server = ForkServer(channel, entry.main)
        try:
            server.serve()
        finally:
            server.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
