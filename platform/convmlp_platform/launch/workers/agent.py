"""The Ray actor beside each training process: starts it, watches it from outside, and outlives it.

It imports no torch, and does next to nothing itself: the node's fork server holds what training needs, imported, and
forks a training process for each attempt.

It also finds the network interface for gloo. Left alone, gloo takes what the machine's own name resolves to, on many
systems 127.0.0.1, and the other nodes' connections are refused.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict

from convmlp_platform.health.hangs.process_view import state_of
from convmlp_platform.health.hangs.stacks import collect_stacks
from convmlp_platform.health.heartbeat.heartbeat import read_heartbeat
from convmlp_platform.launch.workers.fork_server_link import ForkServerLink
from convmlp_platform.launch.workers.placement import Home
from convmlp_platform.launch.workers.process_files import (
    AGENT_PREFIX,
    ProcessFiles,
    make_folder,
    memory_folder,
)
from convmlp_platform.launch.workers.process_tree import kill_family
from convmlp_platform.launch.workers.worker_report import Exit, Report
from data_prep.storage.json_files import Count, DamagedJson, Form, read_json


def interface_of(ip: str) -> str | None:
    """The network interface that owns the address `ip`, None if none does (a container behind NAT)."""
    wanted = ipaddress.ip_address(ip)
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            own = ipaddress.ip_address(one.address.split("%")[0])
            if own == wanted or (own.is_loopback and wanted.is_loopback and own.version == wanted.version):
                return name
    return None


_MOST_LINES = 10_000
"""Of output that nobody fetches."""
_LAST_WORDS = 30
_CLOSE_S, _CODE_S = 5.0, 1.0


@dataclass
class _Output:
    """A pipe that this agent's training processes write to, and the fork server that it has started."""

    number: int
    read: int
    rest: bytes = b""


@dataclass
class Agent:
    """Its methods may be called at the same time (a threaded actor).

    Args:
        modules: what training needs imported; `main` of the last one is what a training process does.
        key: agents of the same key share a fork server: those of one run on one node. Default: one of its own.
        environment: of what is started. Default: this process's.
    """

    modules: Sequence[str]
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    environment: Mapping[str, str] | None = None
    _news: threading.Condition = field(default_factory=threading.Condition)
    _lines: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    _words: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_WORDS))
    _over: threading.Event = field(default_factory=threading.Event)
    _closing: bool = False
    _warm: bool = False
    _broken: str | None = None
    _start: int = 0
    _pid: int | None = None
    _exit: Exit | None = None
    _oom_kills: int = 0

    def __post_init__(self) -> None:
        self.folder, self._lock = make_folder(AGENT_PREFIX, memory_folder())
        outputs, ends = [], []
        for number in (1, 2):
            read, write = os.pipe()
            os.set_blocking(read, False)
            outputs.append(_Output(number, read))
            ends.append(write)
        environment = dict(os.environ if self.environment is None else self.environment)
        try:
            self._server = ForkServerLink(
                self.key, self.modules, (ends[0], ends[1]), self.folder, environment
            )
        except (
            OSError
        ) as error:  # not raised: Ray would print its own stack, and the driver try again and again
            self._broken = f"no process to start training from: {error}"
            self._over.set()
            return
        finally:
            for end in ends:
                os.close(end)
        self._channel = self._server.channel
        threading.Thread(target=self._listen, args=(self._channel, outputs), daemon=True).start()

    def home(self) -> Home:
        """Returns this agent's location: its node, address, host, GPUs and network interface."""
        import ray

        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        gpus = context.get_accelerator_ids().get("GPU", [])
        host = address if address.startswith("127.") else socket.gethostname()
        # What is set at `ray start` on the node stays.
        interface = None if os.environ.get("GLOO_SOCKET_IFNAME") else interface_of(address)
        return Home(context.get_node_id(), address, host, tuple(map(str, gpus)), interface)

    def warm(self) -> str | None:
        """Return once training processes start quickly: None, or why there will be none."""
        with self._news:
            self._news.wait_for(lambda: self._warm or self._broken)
            return self._broken

    def share(self, key: str) -> None:
        """Let agents of another key find this agent's server: the driver's, once it knows its node."""
        self.key = key
        self._server.move(key)

    def free_port(self) -> int:
        """A port on which the ranks may meet; free a moment ago."""
        with socket.socket() as one:
            one.bind(("", 0))
            return int(one.getsockname()[1])

    def start(self, settings: dict[str, Any]) -> int | None:
        """Start the training process of an attempt (`settings` of `training_process.main`, but `folder` and
        `forked`); its id, None where the fork server is gone."""
        with self._news:
            self._start, self._pid, self._exit = settings["start"], None, None
            self._words.clear()
            self._oom_kills = _oom_kills()
            self._send(start=settings | {"folder": str(self.folder), "forked": time.time()})
            self._news.wait_for(lambda: self._pid or self._broken)
            return self._pid

    def watch(self, timeout: float) -> Report:
        """Returns a report on the process after at most `timeout` seconds; at once if the process ends or prints."""
        with self._news:
            seen = self._exit
            self._news.wait_for(lambda: self._exit is not seen or self._lines or self._broken, timeout)
            lines = tuple(self._lines)
            self._lines.clear()
            files = ProcessFiles.within(self.folder, self._start)
            marks = _read(files.marks, dict[str, float]) or {}
            beat = read_heartbeat(files.heartbeat)
            state = "X" if self._exit else state_of(self._pid) if self._pid else ""
            return Report(self._start, self._pid, state, beat, marks, self._exit, lines, self._broken)

    def send_signal(self, number: int) -> None:
        """To the training process alone; nothing happens where it is gone. SIGKILL goes to its readers as well."""
        self._send(signal=int(number))

    def kill(self, timeout: float = 8.0) -> bool:
        """Kill the training process and its readers; whether they are gone."""
        with self._news:
            if self._start and self._exit is None and not self._broken:
                self._send(signal=int(signal.SIGKILL))
            return (
                self._news.wait_for(lambda: self._exit or self._broken or not self._start, timeout)
                is not False
            )

    def close(self) -> None:
        """End what the fork server has started for this agent, and the server with its last agent."""
        self._closing = True
        self._send(end=True)
        self._over.wait(_CLOSE_S)

    def stacks(self, timeout: float) -> str:
        """Returns the stacks of the training process: see health.hangs.stacks.collect_stacks."""
        with self._news:
            pid, files = self._pid, ProcessFiles.within(self.folder, self._start)
        return "there is no process\n" if pid is None else collect_stacks(pid, files.stacks, timeout)

    def _send(self, **message: Any) -> None:
        with self._news, contextlib.suppress(OSError):  # a fork server that is gone tells in its own way
            if self._broken is None:
                self._channel.send_bytes(json.dumps(message).encode())

    def _listen(self, channel: Connection, outputs: list[_Output]) -> None:
        """A thread: take in what the fork server reports and what the processes print."""
        selector = selectors.DefaultSelector()
        selector.register(channel, selectors.EVENT_READ)
        for output in outputs:
            selector.register(output.read, selectors.EVENT_READ, output)
        while True:
            ready = selector.select()
            for key, _ in ready:
                if key.data is not None and not self._take_lines(key.data):
                    selector.unregister(key.fileobj)
            if any(key.data is None for key, _ in ready):
                try:
                    message = json.loads(channel.recv_bytes())
                except (EOFError, OSError):
                    break
                for output in outputs:  # what it printed before it ended comes before its end
                    self._take_lines(output)
                self._take_news(message)
        for output in outputs:
            self._take_lines(output)
        self._give_up()

    def _take_lines(self, output: _Output) -> bool:
        """Read all that is there; whether more may come."""
        more = True
        content = output.rest
        with contextlib.suppress(BlockingIOError):
            while more:
                chunk = os.read(output.read, 1 << 16)
                more, content = bool(chunk), content + chunk
        *lines, output.rest = content.split(b"\n")
        texts = [line.decode(errors="replace") for line in lines]
        with self._news:
            self._lines.extend((output.number, text) for text in texts)
            self._words.extend(texts if output.number == 2 else [])
            if texts:
                self._news.notify_all()
        return more

    def _take_news(self, message: dict[str, Any]) -> None:
        with self._news:
            if "warm" in message:
                self._warm = True
            elif "failed" in message:
                self._words.extend(message["failed"].splitlines())
            elif "started" in message:
                self._pid = message["started"]
            else:
                self._end(message["code"], message["at"])
            self._news.notify_all()

    def _end(self, code: int, at: float) -> None:
        outcome = _read(ProcessFiles.within(self.folder, self._start).outcome, _Outcome)
        killed = code == -signal.SIGKILL and _oom_kills() > self._oom_kills
        facts = None if outcome is None else outcome.model_dump(exclude_unset=True)
        self._exit = Exit(code, at, facts, killed, tuple(self._words))

    def _give_up(self) -> None:
        """The fork server is gone, or done with this agent, and with it what it forked; its readers may be left."""
        code = None if self._closing else self._server.exit_code(_CODE_S)
        with self._news:
            if self._pid is not None and self._exit is None:
                kill_family(self._pid)
                self._end(-signal.SIGKILL, time.time())
            words = "\n".join(self._words)
            how = "" if code is None else f" with code {code}"
            self._broken = f"the process that training starts from ended{how}\n{words}".strip()
            self._news.notify_all()
        self._over.set()


class _Outcome(BaseModel):
    """Of what `training_process.finished` and `failed` write, the part that decides what becomes of it."""

    model_config = ConfigDict(extra="allow")

    kind: Literal["finished", "stopped", "error"]
    step: Count = 0
    reason: str | None = None


def _read(path: Path, form: type[Form]) -> Form | None:
    """A file of the process, None where it isn't there or damaged: the process's end says enough."""
    try:
        return read_json(path, form, finite=False)
    except (OSError, DamagedJson):
        return None


def _oom_kills() -> int:
    """How many processes the kernel has killed in this container for want of memory; 0 where it doesn't say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/sys/fs/cgroup/memory.events").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
