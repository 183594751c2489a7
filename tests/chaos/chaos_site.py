"""Where the chaos takes place: a Ray cluster on this machine that may lose nodes, a small disk, the job's command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from prepared import digits

from convmlp_platform.launch.local_cluster import LocalCluster

REPOSITORY = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).resolve().parent / "inside"
JOB = REPOSITORY / "jobs" / "pretrain_digits.yaml"
DISK_MB = 160


class ChaosError(Exception):
    """Something didn't happen that had to."""


def wait_for(happened: Callable[[], bool], what: str, timeout: float = 180.0) -> None:
    """Raises ChaosError where `happened` isn't true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not happened():
        if time.monotonic() > deadline:
            raise ChaosError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.05)


def node_of(cluster: LocalCluster, pid: int) -> int | None:
    """Where a process runs."""
    return next((node for node in range(cluster.num_nodes) if pid in cluster.node_pids(node)), None)


def ray_id_of(cluster: LocalCluster, node: int) -> str:
    """Ray's name for a node, from its raylet's command line."""
    words = [word for pid in cluster.node_pids(node) for word in _command_line(pid)]
    return next(word.partition("=")[2] for word in words if word.startswith("--node_id="))


def _command_line(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Disk:
    """Where checkpoints go: a file system of its own that really fills up and really refuses, where this user may
    mount one; else a folder, and the faults act inside the training process."""

    def __init__(self, root: Path) -> None:
        self.path, self.flags = root / "store", root / "flags"
        self.path.mkdir(parents=True)
        self.flags.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs"]
        self.real = _quiet(["mount", *options, str(self.path)])

    def fill(self) -> None:
        """Not a byte is free, until `free`. To be called again and again: retired checkpoints make room."""
        if not self.real:
            (self.flags / "no-space").touch()
            return
        with suppress(OSError), (self.path / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)
        (self.flags / "no-space").unlink(missing_ok=True)

    def refuse(self) -> None:
        """No file can be created or written, until `accept`. To be called again and again: an open file prevents it."""
        if not self.real:
            (self.flags / "refused").touch()
            return
        _quiet(["mount", "-o", "remount,ro", str(self.path)])

    def accept(self) -> None:
        if self.real:
            _quiet(["mount", "-o", "remount,rw", str(self.path)])
        (self.flags / "refused").unlink(missing_ok=True)

    def close(self) -> None:
        if self.real:
            _quiet(["umount", "--lazy", str(self.path)])


def _quiet(command: list[str]) -> bool:
    with suppress(FileNotFoundError):
        return not subprocess.run(command, capture_output=True).returncode
    return False


class Site:
    """Cluster, disk, data and the folder that all of it writes to."""

    def __init__(self, root: Path, cluster: LocalCluster, disk: Disk) -> None:
        self.root, self.cluster, self.disk, self.data = root, cluster, disk, digits("webdataset")

    def run_folder(self, name: str) -> Path:
        return self.root / "runs" / name

    def checkpoints(self, name: str) -> Path:
        return self.disk.path / name / "checkpoints"

    def command(self, name: str, **settings: object) -> list[str]:
        """`convmlp run jobs/pretrain_digits.yaml --set ...`."""
        sets = settings_of(name, self.data, self.disk.path, **settings)
        options = [word for one in sets for word in ("--set", one)]
        return [sys.executable, "-m", "convmlp_platform", "run", str(JOB), *options]


def settings_of(name: str, data: Path, store: Path, **settings: object) -> list[str]:
    """What the job is started with: `key=value`, where a setting's dots are double underscores here."""
    chosen = {
        "name": name,
        "data__path": data,
        "checkpoint__store": store,
        "tracking__register_as": "null",
        "launch__placement": "SPREAD",
    } | settings
    return [f"{key.replace('__', '.')}={value}" for key, value in chosen.items()]


@contextmanager
def chaos_site(root: Path, cpus_per_node: int = 2) -> Iterator[Site]:
    """A cluster of two nodes with `root` for everything."""
    root.mkdir(parents=True, exist_ok=True)
    disk = Disk(root)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    paths = [str(path) for path in (INSIDE, REPOSITORY, REPOSITORY / "platform")]
    home = root / "home"
    home.mkdir(exist_ok=True)
    environment = own | {
        "CONVMLP_ROOT": str(root),
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",  # else workers run at 15, and whatever else this machine does comes first
    }
    try:
        with LocalCluster(2, cpus_per_node, directory=REPOSITORY, environment=environment) as cluster:
            yield Site(root, cluster, disk)
    finally:
        disk.close()
        shutil.rmtree(root / "store", ignore_errors=True)
