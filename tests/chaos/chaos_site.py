"""Where the chaos takes place: a Ray cluster of this machine that may lose nodes, its disks, the command of the job."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from chaos_storage import Clock, DataServer, Disk, data_server
from prepared import digits

from convmlp_platform.launch.cluster.local_cluster import LocalCluster

REPOSITORY = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).resolve().parent / "inside"
JOB = REPOSITORY / "jobs" / "pretrain_digits.yaml"


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


class Site:
    """Cluster, disks, data, clock, and the folder that all of it writes to.

    `store` holds the checkpoints; `records` all else that a run writes: journal, ledger, events, MLflow's SQLite file.
    """

    def __init__(
        self,
        root: Path,
        temporary: Path,
        cluster: LocalCluster,
        store: Disk,
        records: Disk,
        clock: Clock,
        server: DataServer | None,
    ) -> None:
        self.root, self.temporary = root, temporary
        self.cluster, self.clock, self.server = cluster, clock, server
        self.disk, self.records = store, records
        self.data = digits("webdataset")
        self.shared_memory_before = shared_memory()

    def run_folder(self, name: str) -> Path:
        return self.records.path / name

    def checkpoints(self, name: str) -> Path:
        return self.disk.path / name / "checkpoints"

    @property
    def mlflow(self) -> Path:
        return mlflow_file(self.records)

    def command(self, name: str, **settings: object) -> list[str]:
        """`convmlp run jobs/pretrain_digits.yaml --set ...`."""
        data = {"data__cache_dir": self.server.cache} if self.server else {}
        where = self.server.url if self.server else self.data
        sets = settings_of(name, where, self.disk.path, **data, **settings)
        options = [word for one in sets for word in ("--set", one)]
        return [sys.executable, "-m", "convmlp_platform", "run", str(JOB), *options]


def shared_memory() -> set[Path]:
    """What is ours in shared memory."""
    return set(Path("/dev/shm").glob("convmlp-*"))


def mlflow_file(records: Disk) -> Path:
    """MLflow's SQLite file."""
    return records.path / "mlflow.db"


def of_root(site: Site, *words: str) -> list[tuple[psutil.Process, str]]:
    """Processes of this site, by their CONVMLP_ROOT, whose command line has one of these words."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CONVMLP_ROOT") != str(site.root):
                continue
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(word in line for word in words) and process.status() != psutil.STATUS_ZOMBIE:
            found.append((process, line[:200]))
    return found


def settings_of(name: str, data: Path | str, store: Path, **settings: object) -> list[str]:
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
def chaos_site(root: Path, cpus_per_node: int = 2, *, remote_data: bool = False) -> Iterator[Site]:
    """A cluster of two nodes with `root` for everything; `remote_data`: the dataset is read over HTTP."""
    root.mkdir(parents=True, exist_ok=True)
    (flags := root / "flags").mkdir()
    store, records = Disk(root / "store", flags), Disk(root / "runs", flags)
    clock = Clock(flags / "clock")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    paths = [str(path) for path in (INSIDE, REPOSITORY, REPOSITORY / "platform")]
    (root / "home").mkdir(exist_ok=True)
    # Below /tmp: of a longer one the cluster would make another.
    temporary = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    environment = own | {
        "CONVMLP_ROOT": str(root),
        "MLFLOW_TRACKING_URI": f"sqlite:///{mlflow_file(records)}",
        "HOME": str(root / "home"),
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",  # else workers run at 15, and whatever else this machine does comes first
    }
    with ExitStack() as stack:
        for disk in (store, records):
            stack.callback(shutil.rmtree, disk.path, ignore_errors=True)
            stack.callback(disk.close)
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        server = stack.enter_context(data_server(digits("webdataset"), root)) if remote_data else None
        cluster = stack.enter_context(LocalCluster(2, cpus_per_node, REPOSITORY, environment))
        yield Site(root, temporary, cluster, store, records, clock, server)
