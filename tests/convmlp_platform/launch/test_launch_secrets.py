"""Secrets of the user's surroundings reach who needs them and no file; what listens, listens on loopback."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, BinaryIO

import psutil
import pytest
from prepared import digits
from ray_site import REPOSITORY, clean_environment
from web_server import web_server

from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.launch.cluster.worker_environment import (
    private_variables,
    secrets_among,
    shared_env_vars,
)
from convmlp_platform.launch.cluster_view import Clock
from convmlp_platform.launch.supervisor import attempt
from convmlp_platform.launch.workers.placement import Home
from convmlp_platform.launch.workers.process_files import make_folder, private_folder

DOCUMENTED_OPEN = frozenset[str]()
"""Addresses beyond loopback on which a Ray of our own listens (docs/operations.md): none."""

PLANTED = {
    "MLFLOW_TRACKING_USERNAME": "planted-user",
    "MLFLOW_TRACKING_PASSWORD": "planted-password",
    "MLFLOW_TRACKING_TOKEN": "planted-token",
    "MLFLOW_REGISTRY_URI": "http://someone:planted-registry@127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-key",
    "AWS_SESSION_TOKEN": "planted-aws-session",
    "HTTPS_PROXY": "http://someone:planted-proxy@127.0.0.1:9",
    "RAY_AUTH_TOKEN": "planted-ray-token",
}
JOB = """\
kind: train
name: secret
model: {name: convmlp_tiny}
data: {path: "%s", image_size: 32, num_workers: 0}
engine: {precision: fp32}
optimizer: {lr: 1e-3}
schedule: {warmup_epochs: 0}
training: {epochs: 1, max_steps: 2, global_batch_size: 32, micro_batch_size: 16}
tracking: {experiment: secrets, register_as: null, tags: {from: "http://someone:planted-tag@127.0.0.1/x"}}
launch: {num_workers: 2, use_gpu: false, address: local}
"""


@pytest.fixture
def secrets_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)  # MLflow, and tests of it, set some
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def test_nothing_that_a_user_has_set_is_in_the_runtime_environment(secrets_set: None) -> None:
    shared = shared_env_vars(threads=1)
    assert "planted" not in str(shared)
    assert set(shared) <= {"CONVMLP_ROOT", "OMP_NUM_THREADS", "PYTHONUNBUFFERED", "PYTHONPATH"}
    assert private_variables() == {k: v for k, v in PLANTED.items() if k.startswith("MLFLOW_")}


def test_workers_look_for_the_users_own_modules_where_the_driver_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "mine:")
    assert "PYTHONPATH" not in shared_env_vars(threads=1)
    assert shared_env_vars(threads=1, own_modules=True)["PYTHONPATH"] == str(tmp_path / "mine")


@pytest.mark.parametrize(
    "name, value, secret",
    [
        ("MLFLOW_TRACKING_PASSWORD", "x", True),
        ("aws_secret_access_key", "x", True),
        ("HF_TOKEN", "x", True),
        ("AZURE_STORAGE_ACCOUNT_KEY", "x", True),
        ("ANYTHING", "http://me:pw@host/", True),
        ("SIGNED", "https://host/x?X-Amz-Signature=1", True),
        ("RAY_AUTH_TOKEN_PATH", "/run/token", False),
        ("AWS_SHARED_CREDENTIALS_FILE", "/run/aws", False),
        ("CONVMLP_ROOT", "/shared", False),
        ("MLFLOW_TRACKING_URI", "http://mlflow:5000", False),
    ],
)
def test_what_is_a_secret(name: str, value: str, secret: bool) -> None:
    assert secrets_among({name: value}) == [name] * secret


def test_a_training_process_gets_mlflows_password_in_its_start_alone(
    secrets_set: None, tmp_path: Path
) -> None:
    """Also on nodes that know nothing of it."""
    started: list[dict[str, Any]] = []

    def ask(_agent: object, method: str, *arguments: Any) -> int:
        started.extend(arguments if method == "start" else ())
        return 4711

    cluster: Any = SimpleNamespace(
        clock=Clock(), ask=ask, done=lambda calls, **_: calls, answer=lambda call: call
    )
    member: Any = SimpleNamespace(home=Home("node", "127.0.0.1", "here"), actor=None)
    attempt.begin_attempt(a_job(tmp_path, "/data/digits"), 1, [member], lambda _: None, cluster)
    given = started[0]["environment"]
    assert given["MLFLOW_TRACKING_PASSWORD"] == "planted-password"
    assert given["RANK"] == "0"
    assert "planted-aws-key" not in str(given)


def test_a_trial_of_a_sweep_gets_both_from_the_board_and_tune_neither(
    secrets_set: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune writes its configuration into files."""
    from convmlp_platform.sweep import run_trial, tune  # not by each test worker: Tune takes 4 s

    job = a_job(tmp_path, "http://someone:planted-data@127.0.0.1:9/digits")
    planned = SimpleNamespace(
        name="t", trial=SimpleNamespace(job=job), steps_per_epoch=1, stop_step=2, done=True
    )
    settings = tune._settings(planned, SimpleNamespace(metric="eval/top1"), [])  # type: ignore[arg-type]
    assert "planted" not in str(settings)
    board = run_trial.Board()
    board.give({"t": tune._job(planned, {})}, private_variables())  # type: ignore[arg-type]
    monkeypatch.setattr(run_trial.ray, "get", lambda answer: answer)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    actor = SimpleNamespace(
        take=SimpleNamespace(remote=board.take), asked=SimpleNamespace(remote=board.asked)
    )
    trial = run_trial.SweepTrial.__new__(run_trial.SweepTrial)
    trial.setup({"run": settings | {"board": actor}})
    assert trial.job == job
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "planted-password"


def test_our_folders_are_the_owners_alone_and_leave_with_them(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with private_folder("ours-", tmp_path) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            left, lock = make_folder("ours-", tmp_path)
            assert folder.exists(), "it is in use"
    finally:
        os.umask(old)
    assert not folder.exists()
    os.close(lock)  # as its owner's death does
    with private_folder("ours-", tmp_path):
        assert not left.exists()


def test_a_folder_on_a_file_system_without_flock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / "ours-of-another").mkdir()
    folder, lock = make_folder("ours-", tmp_path)
    os.close(lock)
    assert folder.exists()
    assert (tmp_path / "ours-of-another").exists(), "it may be in use"


def a_job(folder: Path, data: str) -> TrainJob:
    file = folder / "job.yaml"
    file.write_text(JOB % data)
    job = load_job(file)
    assert isinstance(job, TrainJob)
    return job


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_on_a_ray_of_its_own_keeps_secrets_and_doors_shut(tmp_path: Path) -> None:
    """A real run, searched while it lasts and afterwards: files, logs, MLflow, Ray's folder, command lines, sockets."""
    with ExitStack() as ends:
        temporary = Path(ends.enter_context(TemporaryDirectory(prefix="s-", dir="/tmp")))
        web = ends.enter_context(web_server(digits()))
        data = web.url.replace("//", "//someone:planted-data@") + "?token=planted-query"
        a_job(tmp_path, data)
        environment = clean_environment(tmp_path, tmp_path / "home") | PLANTED
        environment |= {"TMPDIR": str(temporary), "NO_PROXY": "127.0.0.1"}
        run = subprocess.Popen(
            [sys.executable, "-m", "convmlp_platform", "run", str(tmp_path / "job.yaml")],
            env=environment, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        ends.callback(run.kill)
        watch = Watch(run.pid, temporary, ends)
        while run.poll() is None:
            watch.look()
            time.sleep(0.5)  # a look costs a tenth of that
        assert run.stdout is not None
        output = run.stdout.read()
        assert run.returncode == 0, output
        assert "2 CPU workers on a local Ray" in output

        seen = "\n".join(watch.commands)
        for part in ("gcs_server", "raylet", "workers.fork_server", "mlflow.replayer"):
            assert part in seen
        assert watch.replayer_password == "planted-password"
        assert watch.listening, "there was something to see"
        assert {name for name in watch.listening if not is_loopback(name)} == DOCUMENTED_OPEN
        assert "planted" not in seen + output
        kinds = {"-".join(name.split("-")[:2]) for name in watch.modes}
        assert kinds == {"convmlp-ray", "convmlp-agent", "convmlp-forks"}
        assert set(watch.modes.values()) == {0o700}
        logs = {file.name for file in watch.kept}
        assert {"runtime_env_agent.log", "raylet.out", "gcs_server.out"} <= logs
        assert found_in(watch.kept) == []
        assert not list(temporary.glob("convmlp-*")), "nothing of ours is left there"
        written = {file: ends.enter_context(file.open("rb")) for file in files_below(tmp_path)}
        names = {file.name for file in written}
        assert {"run.json", "journal.jsonl", "target.json", "events.jsonl", "mlflow.db"} <= names
        assert found_in(written) == [tmp_path / "job.yaml"], "where the user has written it"
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            assert database.execute("select count(*) from metrics").fetchone()[0] > 0


class Watch:
    """A process and all that it has started, as anybody on the machine may see them."""

    def __init__(self, pid: int, temporary: Path, ends: ExitStack) -> None:
        self.root, self.temporary, self.ends = psutil.Process(pid), temporary, ends
        self.commands, self.listening = set[str](), set[str]()
        self.modes: dict[str, int] = {}
        self.kept: dict[Path, BinaryIO] = {}
        """Files that may be gone at the end."""
        self.replayer_password = ""

    def look(self) -> None:
        with suppress(psutil.NoSuchProcess):
            for process in [self.root, *self.root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    self._look_at(process)
        self._keep(self.temporary)

    def _look_at(self, process: psutil.Process) -> None:
        command = process.cmdline()
        self.commands.add(" ".join(command))
        if "convmlp_platform.tracking.mlflow.replayer" in command:
            self.replayer_password = process.environ().get("MLFLOW_TRACKING_PASSWORD", "")
        if "convmlp_platform.launch.workers.fork_server" in command:
            self._keep(Path(command[4]).parent, Path(command[4]).name)
        if command and command[0].startswith("ray::Agent"):  # it holds its folder open
            for link in Path(f"/proc/{process.pid}/fd").iterdir():
                with suppress(OSError):
                    if (folder := link.readlink()).name.startswith("convmlp-agent-"):
                        self._keep(folder.parent, folder.name)
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                self.listening.add(connection.laddr.ip)

    def _keep(self, parent: Path, pattern: str = "convmlp-*") -> None:
        for folder in parent.glob(pattern):
            with suppress(FileNotFoundError):
                self.modes[folder.name] = stat.S_IMODE(folder.stat().st_mode)
            for file in files_below(folder):
                if file not in self.kept:
                    with suppress(OSError):
                        self.kept[file] = self.ends.enter_context(file.open("rb"))


def files_below(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                if stat.S_ISREG((Path(parent) / name).lstat().st_mode):
                    yield Path(parent) / name


def found_in(files: dict[Path, BinaryIO]) -> list[Path]:
    return [name for name, file in files.items() if b"planted" in file.read()]


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
