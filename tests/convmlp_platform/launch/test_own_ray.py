"""A Ray that a job starts for itself: when it comes up slowly, doesn't come up, or dies under the job."""

from __future__ import annotations

import inspect
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from prepared import digits
from ray_run import ray_run
from ray_site import REPOSITORY, Site, clean_environment

from convmlp_platform.cli.main import main
from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import LaunchError
from convmlp_platform.launch.cluster import connect as connecting
from convmlp_platform.launch.cluster_view import Clock, ClusterView
from convmlp_platform.launch.supervisor import supervisor
from convmlp_platform.launch.supervisor.signals import StopSignals
from convmlp_platform.runs.run_folder import RunFolder

TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", connecting.START_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_a_ray_that_does_not_come_up_is_one_message_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def give_up(**_options: Any) -> None:
        raise Exception(TIMED_OUT)

    monkeypatch.setattr(ray, "init", give_up)
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    assert main(["run", "jobs/prep_digits.yaml", "--set", "launch.address=local"]) == 2
    said = capsys.readouterr().err
    assert f"Ray can't be started on this machine: {TIMED_OUT}" in said
    assert "CONVMLP_RAY_START_S (=90, seconds)" in said
    assert "Traceback" not in said


def test_a_slow_ray_gets_the_time_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connecting.START_VARIABLE, "20")
    asked = 0

    def get_node(_address: str, _node: str) -> str:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise RuntimeError("no such node yet")
        return "the node"

    def init(**_options: Any) -> None:
        assert ray._private.services.get_node("127.0.0.1:1", "node") == "the node"

    monkeypatch.setattr(ray._private.services, "get_node", get_node)
    monkeypatch.setattr(ray, "init", init)
    with connecting.connect("local"):
        assert ray._private.services.get_node is get_node
    assert asked == 3


def test_rays_own_limit_is_where_it_is_expected() -> None:
    """Ray waits in a loop round `services.get_node`, whose limit it has no setting for."""
    source = inspect.getsource(ray._private.node.Node.__init__)
    assert "ray._private.services.get_node(" in source
    assert "except RuntimeError" in source


def test_seconds_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(connecting.START_VARIABLE, "soon")
    with pytest.raises(LaunchError, match="CONVMLP_RAY_START_S must be seconds, not 'soon'"):
        connecting.connect("local").__enter__()


@pytest.mark.parametrize("known", [frozenset({"node"}), frozenset[str]()])
def test_the_death_of_the_own_rays_node_ends_the_job_at_once(tmp_path: Path, known: frozenset[str]) -> None:
    job = load_job(REPOSITORY / "jobs/pretrain_digits.yaml", [])
    assert isinstance(job, TrainJob)
    folder = RunFolder(tmp_path, "")
    parts: Any = {"cluster": SimpleNamespace(clock=Clock()), "metrics": None}
    driver = supervisor.Supervisor(
        job, False, folder, StopSignals(), threading.Event(), own_ray=True, **parts
    )
    view = ClusterView(known, {}, {})
    driver.group = SimpleNamespace(  # type: ignore[assignment]
        refresh=lambda: None,
        cluster=lambda: view,
        broken=None,
        ready=[],
        coming=0,
        least=2,
        fits=0,
        answering=lambda _nodes: set(),
    )
    began = time.monotonic()
    with pytest.raises(LaunchError, match="the Ray that was started for this job has died") as raised:
        driver._assemble()
    assert raised.value.cause == "hardware"
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_job_whose_raylet_is_killed_ends_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits("webdataset"))
    environment = clean_environment(tmp_path, tmp_path)
    site = Site(SimpleNamespace(env=environment), tmp_path, tmp_path)  # type: ignore[arg-type]
    settings = (
        "launch.address=local",
        "launch.num_workers=1",
        "training.epochs=400",
        "checkpoint.every_steps=20",
    )
    with ray_run(site, "orphan", *settings) as run:
        run.wait(lambda: run.events("attempt_running"))
        family = psutil.Process(run.process.pid).children(recursive=True)
        (raylet,) = (process for process in family if process.name() == "raylet")
        raylet.kill()
        began = time.monotonic()
        assert run.end() == 2, run.output
        assert time.monotonic() - began < 120
    assert "error: orphan: the Ray that was started for this job has died" in run.output
    assert "Traceback" not in run.output
