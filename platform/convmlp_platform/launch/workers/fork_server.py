"""The process that a node's training processes are forked from: it has imported torch and the rest, so a start takes
milliseconds instead of ten seconds, and what it has imported is in the node's memory once (`python -m`, started by the
first agent of a run on the node: `fork_server_link`).

It talks with each agent in lines of JSON over a socket; the socket's end means that the agent is gone, and what was
forked for it is then killed. It ends with the last agent.
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
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from convmlp_platform.launch.workers.process_files import held_folder
from convmlp_platform.launch.workers.process_tree import kill_family
from convmlp_platform.tracking.provenance.code_state import this_code
from data_prep.console import adapt_streams

# An agent that has started the server joins it within milliseconds, and says at once what it brings.
_FIRST_AGENT_S, _GREETING_S = 60.0, 10.0


@dataclass(eq=False)
class _Client:
    """An agent: where it listens, what its processes print to, their environment, and the process it has."""

    channel: Connection
    outputs: tuple[int, int]
    environment: dict[str, str]
    folder: Path
    child: int | None = None

    def tell(self, **fields: Any) -> None:
        """A line of news; whoever is gone needs none."""
        with contextlib.suppress(OSError):
            self.channel.send_bytes(json.dumps(fields).encode())

    def close(self) -> None:
        """Let go of its descriptors."""
        self.channel.close()
        for output in self.outputs:
            os.close(output)


class ForkServer:
    """At most one training process an agent at a time: a fork that calls `become`."""

    def __init__(
        self, listener: socket.socket, folder: Path, become: Callable[[dict[str, Any]], NoReturn]
    ) -> None:
        self.listener, self.folder, self.become = listener, folder, become
        self.clients: list[_Client] = []
        self._wake, wake = os.pipe()
        for descriptor in (self._wake, wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Fork, kill and report, until the last agent is gone; `folder` holds the socket that agents find it by."""
        patience = _FIRST_AGENT_S
        while True:
            channels = {client.channel: client for client in self.clients}
            ready = wait([self.listener, self._wake, *channels], None if channels else patience)
            if self._wake in ready:
                os.read(self._wake, 1024)
                self._reap()
            for channel, client in channels.items():
                if channel in ready:
                    self._hear(client)
            if self.listener in ready:
                self._admit()
                patience = 0.0
            elif not self.clients and self._is_left():
                return

    def end(self) -> None:
        """Leave nothing behind."""
        for client in list(self.clients):
            self._dismiss(client)

    def _admit(self) -> None:
        if (client := accepted(self.listener)) is not None:
            self.clients.append(client)
            client.tell(warm=True)

    def _hear(self, client: _Client) -> None:
        try:
            message: dict[str, Any] = json.loads(client.channel.recv_bytes())
        except (EOFError, OSError):
            message = {"end": True}
        if "end" in message:
            self._dismiss(client)
        elif "start" in message:
            self._fork(client, message["start"])
        elif "moved" in message:
            self.folder = Path(message["moved"])
        elif client.child is not None and message["signal"] == signal.SIGKILL:
            kill_family(client.child)
        elif client.child is not None:
            os.kill(client.child, message["signal"])

    def _dismiss(self, client: _Client) -> None:
        """Kill what it has, remove its folder, and close its socket: in this order, as the agent may wait for it."""
        if client.child is not None:
            kill_family(client.child)
            os.waitpid(client.child, 0)
        shutil.rmtree(client.folder, ignore_errors=True)
        self.clients.remove(client)
        client.close()

    def _fork(self, client: _Client, settings: dict[str, Any]) -> None:
        child = os.fork()
        if child == 0:
            self._grow_up(client, settings)
        client.child = child
        client.tell(started=child)

    def _grow_up(self, client: _Client, settings: dict[str, Any]) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, output in enumerate(client.outputs, 1):
                os.dup2(output, number)
            os.environ.clear()
            os.environ.update(client.environment)
            # Of the others' sockets and pipes none may stay open here: their ends are news.
            self.listener.close()
            for one in self.clients:
                one.close()
            self.become(settings)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _reap(self) -> None:
        for client in self.clients:
            if client.child is None:
                continue
            pid, status = os.waitpid(client.child, os.WNOHANG)
            if pid:
                kill_family(pid)  # its readers, where it had no time to end them
                client.child = None
                client.tell(ended=pid, code=os.waitstatus_to_exitcode(status), at=time.time())

    def _is_left(self) -> bool:
        """Whether no agent is on its way; then none finds the server any more."""
        with held_folder(self.folder):
            if wait([self.listener], 0):
                return False
            shutil.rmtree(self.folder, ignore_errors=True)
            return True


def accepted(listener: socket.socket) -> _Client | None:
    """The agent that knocks, with what it brings: its pipes, then its environment and folder."""
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError):
        knocking, _ = listener.accept()
        # One that is stopped amid its greeting may not stop the others.
        knocking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(_GREETING_S), 0))
        _, outputs, _, _ = socket.recv_fds(knocking, 1, 2)
        channel = Connection(knocking.detach())
        brought = json.loads(channel.recv_bytes())
        return _Client(channel, (outputs[0], outputs[1]), brought["environment"], Path(brought["folder"]))
    return None


def main(descriptor: int, folder: Path, modules: list[str]) -> None:
    """Serve the agents that knock at the listening socket `descriptor`; `folder` is removed at the end.

    The `modules` are imported as far as they can be; the last one must be there: its `main` is what a fork becomes.
    """
    listener = socket.socket(fileno=descriptor)
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
        become = entry.main
    except BaseException:
        _refuse_all(listener, folder, traceback.format_exc())
        sys.exit(1)
    server = ForkServer(listener, folder, become)
    try:
        server.serve()
    finally:
        server.end()


def _refuse_all(listener: socket.socket, folder: Path, why: str) -> None:
    """Tell the agents that have come why there will be no training; those that come later start another server."""
    with held_folder(folder):
        shutil.rmtree(folder, ignore_errors=True)
    while wait([listener], 0):
        if (client := accepted(listener)) is not None:
            client.tell(failed=why)
            client.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
