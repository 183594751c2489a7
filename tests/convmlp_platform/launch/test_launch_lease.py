"""One driver a run: the living keep their lease, the dead don't."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convmlp_platform.errors import LaunchError
from convmlp_platform.launch import lease as lease_module
from convmlp_platform.launch.lease import NAME, lease, refuse_if_held


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.05)
    monkeypatch.setattr(lease_module, "STALE_S", 0.5)


def change(run: Path, **fields: object) -> None:
    """As another driver would have written it."""
    found = json.loads((run / NAME).read_text())
    (run / NAME).write_text(json.dumps(found | fields))


def left_behind(run: Path, **fields: object) -> None:
    """The lease of a driver that had no time to end it."""
    with lease(run):
        text = (run / NAME).read_text()
    (run / NAME).write_text(text)
    change(run, token="another", **fields)


def test_a_second_driver_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with lease(run):
        for take in (lambda: lease(run).__enter__(), lambda: refuse_if_held(run)):
            with pytest.raises(LaunchError, match=rf"run 'run' .* process {os.getpid()} on "):
                take()
    refuse_if_held(run)
    assert not (run / NAME).exists()


def test_a_killed_driver_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    left_behind(tmp_path, pid=process.pid)
    refuse_if_held(tmp_path)
    began = time.monotonic()
    with lease(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < lease_module.STALE_S / 2


def test_a_process_id_that_was_given_again_is_not_the_driver(tmp_path: Path) -> None:
    left_behind(tmp_path, born=1.0)
    with lease(tmp_path):
        pass


@pytest.mark.usefixtures("quick")
def test_a_driver_elsewhere_is_dead_once_it_has_not_renewed(tmp_path: Path) -> None:
    left_behind(tmp_path, machine="elsewhere", renewed=time.time() + 3600)  # clocks differ
    with lease(tmp_path) as lost:
        assert not lost.is_set()


@pytest.mark.usefixtures("quick")
def test_a_driver_elsewhere_that_renews_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(tmp_path, machine="elsewhere", renewed=1.0)
    monkeypatch.setattr(lease_module.time, "sleep", lambda _: change(tmp_path, renewed=2.0))
    with pytest.raises(LaunchError, match="another driver"):
        lease(tmp_path).__enter__()


@pytest.mark.usefixtures("quick")
def test_whoever_lost_the_lease_is_told_and_leaves_it_alone(tmp_path: Path) -> None:
    with lease(tmp_path) as lost:
        change(tmp_path, token="another")
        assert lost.wait(10)
    assert json.loads((tmp_path / NAME).read_text())["token"] == "another"


def test_a_torn_file_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"host": "a')
    with lease(tmp_path):
        pass
