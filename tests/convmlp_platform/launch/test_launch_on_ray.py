"""Jobs on a real Ray cluster of two nodes, submitted and started as users do."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray_site import REPOSITORY, Site, clean_environment, home_with_stale_token, run_module

from data_prep.dataset.manifest import load_manifest

TRAIN = ("jobs/pretrain_digits.yaml", "--set", "tracking.register_as=null")


@pytest.mark.slow
def test_a_submitted_job_prepares_data(site: Site, digits: Path) -> None:
    output = f"output.path={site.root}/prepared"
    done = site.submit("jobs/prep_digits.yaml", "--set", "output.formats=[webdataset]", "--set", output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_manifest(site.root / "prepared").digest == load_manifest(digits).digest


def test_a_submitted_job_trains_over_two_nodes(site: Site, digits: Path) -> None:
    done = site.submit(
        *TRAIN,
        "--set",
        "name=two-steps",
        "--set",
        "training.max_steps=2",
        "--set",
        "training.log_every_steps=1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 CPU workers on the Ray cluster of 2 nodes" in done.stdout
    lines = [line for line in done.stdout.splitlines() if re.match(r"step [12]/2 ", line)]
    assert len(lines) == 2, f"each progress line once:\n{done.stdout}"
    assert "two-steps is done: 2 steps" in done.stdout
    assert (site.root / "runs" / "two-steps" / "checkpoints").is_dir()


def test_a_stale_token_is_neither_used_nor_replaced(site: Site, digits: Path) -> None:
    assert (site.home / ".ray" / "auth_token").read_text() == "of-an-earlier-cluster"
    assert site.cluster.env["RAY_AUTH_TOKEN"] != "of-an-earlier-cluster"


def test_the_clusters_folder_and_token_are_the_owners_alone(site: Site) -> None:
    token = site.cluster.token_file
    assert stat.S_IMODE(token.parent.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == site.cluster.env["RAY_AUTH_TOKEN"]


def test_whoever_has_no_token_gets_numbers_of_prometheus_at_most(site: Site) -> None:
    answers = {}
    for pid in (pid for node in (0, 1) for pid in site.cluster.node_pids(node)):
        with suppress(psutil.NoSuchProcess):
            for one in psutil.Process(pid).net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    host = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(one.laddr.ip, one.laddr.ip)
                    url = f"http://{host.removeprefix('::ffff:')}:{one.laddr.port}"
                    answers[one.laddr.port] = [_asked(url + path) for path in ("/metrics", "/api/jobs/")]
    assert len(answers) > 5
    open_to_all = {port for port, said in answers.items() if any(said)}
    assert open_to_all <= {44217, 44227}, "see docs/operations.md"


def _asked(url: str) -> bool:
    """Whether there is an answer of some content to somebody without a token."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read(1) != b""
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.slow
def test_more_gpus_than_the_cluster_has(site: Site, digits: Path) -> None:
    done = site.run(*TRAIN, "--set", "name=gpus", "--set", "launch.use_gpu=true")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "launch.num_workers (=2) with one GPU each needs 2 GPUs, the cluster has 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (site.root / "runs" / "gpus").exists()


def test_an_unreachable_cluster(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it doesn't listen: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_module(
            "convmlp_platform",
            ["run", "jobs/prep_digits.yaml"],
            clean_environment(tmp_path, tmp_path) | {"RAY_ADDRESS": address},
        )
    assert done.returncode == 2
    assert f"no Ray cluster can be reached at {address}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_a_workers_platform_error_is_one_message_and_not_retried(site: Site, digits: Path) -> None:
    damaged = site.root / "damaged"
    shutil.copytree(digits, damaged, dirs_exist_ok=True)
    shard = min((damaged / "webdataset").glob("train*.tar"))
    content = bytearray(shard.read_bytes())
    for position in range(600, len(content), 512):  # a byte in each payload, whichever comes first
        content[position] ^= 0xFF
    shard.write_bytes(content)
    done = site.run(*TRAIN, "--set", "name=damaged", "--set", f"data.path={damaged}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert shard.name in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "restarting" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_workers_and_the_run_goes_on_later(
    site: Site, digits: Path, number: signal.Signals
) -> None:
    job = (*TRAIN, "--set", f"name=stopped-{number.name}", "--set", "training.epochs=1000")
    process = subprocess.Popen(
        [sys.executable, "-m", "convmlp_platform", "run", *job],
        env=site.cluster.env, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, rest
    assert "Traceback" not in rest


@pytest.mark.slow
def test_a_local_ray_each_time_whatever_an_earlier_one_left(tmp_path: Path) -> None:
    home = home_with_stale_token(tmp_path / "home")
    environment = clean_environment(tmp_path, home)
    for _ in range(2):
        done = run_module(
            "convmlp_platform",
            ["run", "jobs/prep_digits.yaml", "--set", "output.formats=[webdataset]"],
            environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "is prepared already" in done.stdout
    assert (home / ".ray" / "auth_token").read_text() == "of-an-earlier-cluster"


@pytest.mark.slow
def test_code_from_the_working_dir_runs(site: Site, tmp_path: Path) -> None:
    """The submitted copy of the code wins over the installed one, in the driver and in its tasks."""
    copy = tmp_path / "copy"
    for name in ("jobs", "convmlp", "data_prep", "platform"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    entry = copy / "platform" / "convmlp_platform" / "jobs" / "run_job.py"
    entry.write_text(
        entry.read_text().replace(
            "    kind = kind_of(job)\n", "    kind = kind_of(job)\n    print('from', __file__)\n"
        )
    )
    done = site.command(
        "ray.scripts.scripts", "job", "submit", "--working-dir", str(copy), "--",
        "jobs/prep_digits.yaml", "--set", "output.formats=[webdataset]",
        "--set", f"output.path={tmp_path}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"^from .*/working_dir_files/.*/platform/convmlp_platform/jobs/run_job.py$", done.stdout, re.M
    )
