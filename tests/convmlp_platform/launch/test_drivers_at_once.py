"""Several `convmlp run JOB --no-ray` of one run at the same time: one trains, the others are refused, on every rank."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prepared import digits

from convmlp_platform.runs.lease import NAME, run_lease

DRIVERS = """
import os, signal, sys, time
from pathlib import Path
from convmlp_platform.cli.main import main
from convmlp_platform.training import run as running
import convmlp_platform.jobs.kinds, convmlp_platform.launch.run_summary, convmlp_platform.tracking.mlflow.tracking_uri

job, count, ranks, marks = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "ranks", Path(sys.argv[4])

def run(job, callbacks, *, stop):
    (marks / f"runs-{os.getpid()}").touch()
    while not (marks / "end").exists() and stop.reason is None:
        time.sleep(0.01)
    return running.RunResult({}, {}, None, None, 1, False, stop.reason)

running.run = run
from convmlp_platform.training.preflight.preparation_preflight import PreflightReport
convmlp_platform.jobs.kinds.TrainingKind.preflight = lambda kind, deep: PreflightReport()
go = os.pipe()
children = []
for number in range(count):
    if (pid := os.fork()) == 0:
        os.close(go[1])
        if ranks:
            os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(count))
        os.read(go[0], 1)
        signal.alarm(100)
        code = main(["run", job, "--no-ray"])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    children.append(pid)
os.close(go[1])
codes = []
for number in range(count):
    if ranks or number == count - 1:
        (marks / "end").touch()
    codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
print("codes", *sorted(codes))
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    values = {
        "kind": "train",
        "name": "twice",
        "model": {"name": "convmlp_tiny"},
        "data": {"path": str(digits()), "image_size": 32, "num_workers": 0},
        "augment": {"crop": "pad", "hflip": 0.0},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 1, "global_batch_size": 16, "micro_batch_size": 4},
        "checkpoint": {"path": str(tmp_path / "runs")},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "launch": {"use_gpu": False},
    }
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(values))
    return path


def drivers(job: Path, count: int, *, ranks: bool = False) -> str:
    marks = job.parent / "marks"
    marks.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DRIVERS, str(job), str(count), "ranks" if ranks else "drivers", str(marks)],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def test_of_four_drivers_one_trains_and_the_others_name_it(job: Path) -> None:
    said = drivers(job, 4)
    assert "codes 0 2 2 2" in said, said
    (winner,) = (job.parent / "marks").glob("runs-*")
    named = re.findall(r"run 'twice' is being trained by another driver, process (\d+) on ", said)
    assert named == 3 * [winner.name.removeprefix("runs-")]
    assert not (job.parent / "runs" / "twice" / NAME).exists()


@pytest.mark.slow
def test_the_ranks_of_one_job_take_one_lease(job: Path) -> None:
    said = drivers(job, 2, ranks=True)
    assert "codes 0 0" in said, said


@pytest.mark.slow
def test_every_rank_is_refused_beside_another_driver(job: Path) -> None:
    with run_lease(job.parent / "runs" / "twice").hold():
        said = drivers(job, 2, ranks=True)
    assert "codes 2 2" in said, said
    assert f"is being trained by another driver, process {os.getpid()} on " in said
    assert not list((job.parent / "marks").glob("runs-*"))
