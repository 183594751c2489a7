"""A real Ray cluster of several nodes on this machine: for the demo, for tests, for trying things out.

Every node is a `ray start` of its own with its own address on loopback (127.0.0.2, 127.0.0.3, ...), so that
Ray places workers on them as it would on separate machines. No port is fixed, so clusters may stand side by
side.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil  # type: ignore[import-untyped]

from convmlp_platform.errors import LaunchError
from convmlp_platform.launch.cluster import auth
from convmlp_platform.launch.cluster.connect import START_VARIABLE, start_seconds
from convmlp_platform.launch.workers.process_files import folder_for_ray

OBJECT_STORE_BYTES = 256 * 2**20
_LONGEST_TMPDIR = 70
"""Ray's dashboard ends, unsaid, where the sockets that Python makes in TMPDIR have paths of over 107 characters."""


class LocalCluster:
    """`with LocalCluster(num_nodes=2) as cluster:` starts the nodes and stops just those processes at the
    end.

    `cluster.env` is the environment for clients (`ray job submit`, drivers): the cluster's addresses and its
    token. The entrypoint of a submitted job starts in `directory` (default: the current one), with this
    Python's folder first on PATH, and with `environment` (default: this process's). Raises LaunchError if a
    node doesn't come up.
    """

    def __init__(
        self,
        num_nodes: int = 2,
        cpus_per_node: int = 1,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.num_nodes = num_nodes
        self.cpus_per_node = cpus_per_node
        self.directory = (directory or Path.cwd()).absolute()
        self.address = ""
        self.dashboard_url = ""
        self.env: dict[str, str] = dict(os.environ if environment is None else environment)
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._folder, self._ends = Path(), contextlib.ExitStack()

    def __enter__(self) -> LocalCluster:
        for last in (False, False, True):
            self._folder = self._ends.enter_context(folder_for_ray())
            try:
                self._start()
                break
            except BaseException as error:
                self.stop()
                # Parts of Ray give up on each other after 10 and 30 s, whatever is set: too early on a busy machine.
                if last or not isinstance(error, _NodeStopped):
                    raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill every process of the cluster, and nothing else. Draining a node first would take 30 s."""
        with _interrupts_held():
            _kill([process for node in self._nodes for process in _family(node.pid)])
            for node in self._nodes:
                node.wait()
            self._nodes.clear()
            self._ends.close()

    def log(self, node: int = 0) -> Path:
        """Returns the file with the output of a node's `ray start`."""
        return self._folder / f"node-{node}.log"

    @property
    def token_file(self) -> Path:
        """A file with the cluster's token, for RAY_AUTH_TOKEN_PATH; its owner's alone, gone with the cluster."""
        return self._folder / "token"

    def node_address(self, node: int) -> str:
        """The node's address, as Ray knows it."""
        return f"127.0.0.{node + 2}"

    def is_alive(self, node: int) -> bool:
        """Whether the node's `ray start` is running."""
        return self._nodes[node].poll() is None

    def node_pids(self, node: int) -> list[int]:
        """Every process of a node: Ray's own, its workers, and what those have started; none of a killed node."""
        return [process.pid for process in _family(self._nodes[node].pid)] if self.is_alive(node) else []

    def kill_node(self, node: int) -> None:
        """kill -9 every process of one node at once, as if the machine had lost its power."""
        with _interrupts_held():
            process = self._nodes[node]
            _kill(_family(process.pid))
            process.wait()

    def start_node(self, node: int) -> None:
        """Start a killed node again, under its old address (not the head: the cluster ends with it)."""
        if node == 0 or self.is_alive(node):
            raise LaunchError(f"node {node} can't be started: it is the head, or it is running")
        self._nodes[node] = self._spawn_node(node, self._join_arguments)
        self._wait(lambda: self._started(node), f"node {node}", [node])

    def _start(self) -> None:
        port, dashboard_port, client_port, environment_port = _free_ports(4)
        self.address, self.dashboard_url = f"127.0.0.2:{port}", f"http://127.0.0.1:{dashboard_port}"
        self.env = self._client_environment()
        self.token_file.touch(0o600)
        self.token_file.write_text(self.env[auth.TOKEN])
        head = [
            "--head",
            f"--port={port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard_port}",
            f"--ray-client-server-port={client_port}",
            # Without, the client's server asks Ray for it, and ends the head where there's no answer within 30 s.
            f"--runtime-env-agent-port={environment_port}",
        ]
        self._nodes.append(self._spawn_node(0, head))
        # A node that joins gives up after 10 s without the head's own node, which a busy machine brings up later.
        self._wait(lambda: self._started(0), "its head")
        for node in range(1, self.num_nodes):
            self._nodes.append(self._spawn_node(node, self._join_arguments))
        self._wait(lambda: all(map(self._started, range(self.num_nodes))), "all nodes")
        self._wait(lambda: _answers("127.0.0.1", dashboard_port), "its job server")

    @property
    def _join_arguments(self) -> list[str]:
        # All nodes log into one folder: a second log monitor would print every line twice.
        return [f"--address={self.address}", "--include-log-monitor=false"]

    def _spawn_node(self, index: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--block", f"--temp-dir={self._folder}",
            f"--node-ip-address={self.node_address(index)}", f"--num-cpus={self.cpus_per_node}", "--num-gpus=0",
            f"--object-store-memory={OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0",
            "--dashboard-agent-listen-port=0", "--disable-usage-stats",
            "--log-style=record", "--log-color=false",
        ]  # fmt: skip
        environment = {name: value for name, value in self.env.items() if name != "RAY_ADDRESS"}
        with self.log(index).open("wb") as log:
            # A session of its own: Ctrl-C reaches only us, and we decide when the nodes go.
            return subprocess.Popen(
                [*command, *arguments],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def _client_environment(self) -> dict[str, str]:
        own = {
            name: value
            for name, value in self.env.items()
            if name not in (auth.MODE, auth.TOKEN, auth.TOKEN_PATH)
        }
        own = {
            "RAY_worker_niceness": "0",
            "RAY_enable_metrics_collection": "0",
        } | own  # as in launch.cluster.connect
        path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
        if len(own.get("TMPDIR", "")) > _LONGEST_TMPDIR:
            own["TMPDIR"] = str(self._folder.parent)
        own |= {"PATH": path, "RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard_url}
        return own | auth.settle(None, environment=own)

    def _started(self, index: int) -> bool:
        return "Ray runtime started" in self.log(index).read_text()

    def _wait(self, ready: Callable[[], bool], what: str, nodes: Sequence[int] | None = None) -> None:
        """Until `ready`, while `nodes` (default: all) live."""
        seconds = start_seconds()
        deadline = time.monotonic() + seconds
        while not ready():
            watched = range(len(self._nodes)) if nodes is None else nodes
            dead = [index for index in watched if not self.is_alive(index)]
            if dead or time.monotonic() > deadline:
                index = dead[0] if dead else 0
                last = self.log(index).read_text()[-2000:].strip()
                node, last = f"node {index} of the local Ray cluster", f"its last words:\n{last}"
                if dead:
                    raise _NodeStopped(f"{node} stopped; {last}")
                waited = f"was not up after {seconds:g} s (waiting for {what})"
                raise LaunchError(f"{node} {waited}; {START_VARIABLE} gives it more; {last}")
            time.sleep(0.1)


class _NodeStopped(LaunchError):
    """A node ended by itself."""


def _die_with_parent() -> None:
    """In the child: be killed when the parent is gone, however it went; Ray's reaper then ends the node."""
    if sys.platform == "linux":
        parent_death_signal = 1
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def _family(pid: int) -> list[psutil.Process]:
    """The process, its descendants, and what its session holds besides (workers outlive their raylet)."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        found = {child.pid: child for child in [parent, *parent.children(recursive=True)]}
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == pid:
                found.setdefault(process.pid, process)
    return list(found.values())


def _kill(doomed: list[psutil.Process]) -> None:
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, timeout=10)


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago. Held all at once, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A second Ctrl-C must not leave half a cluster behind; it acts when the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
