"""What kills a run doesn't end it: real processes on the real two-node cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ray_run import RayRun, ray_run, wait_gone
from ray_site import Site

OFTEN = "checkpoint.every_steps=4"
ENDLESS = (OFTEN, "training.epochs=1000")
# Loaded by every Python whose PYTHONPATH has it: building the model fails in training processes, and nowhere else.
BROKEN = """
import sys

class BeforeTraining:
    def find_spec(self, name, path, target=None):
        if name == "convmlp_platform.launch.workers.training_process":
            sys.meta_path.remove(self)
            from convmlp_platform.training.build import parts
            parts.build_task = broken

def broken(*_):
    raise ZeroDivisionError("seven")

sys.meta_path.insert(0, BeforeTraining())
"""


def cause(run: RayRun) -> str:
    """Of the newest attempt's end."""
    return str(run.events("attempt_ended")[-1]["cause"])


@pytest.mark.slow
def test_a_killed_process_costs_a_moment(site: Site, digits: Path) -> None:
    with ray_run(site, "killed", OFTEN, "training.max_steps=24", "training.log_every_steps=1") as run:
        run.wait_running()
        victim = run.pids()[1]
        os.kill(victim, signal.SIGKILL)
        assert run.end() == 0, run.output
    first = run.events("attempt_ended")[0]
    assert (first["cause"], first["rank"]) == ("hardware", 1)
    assert "worker 1 on 127.0.0." in run.output
    assert "was killed by SIGKILL" in run.output
    assert "(hardware: 1 of 20 in 24 h)" in run.output
    assert "with 2 workers, " in run.output
    assert "restarts    1 (hardware 1)" in run.output
    running = run.events("attempt_running")[-1]
    assert running["step"] >= 4
    assert running["seconds"]["detect"] < 1
    assert running["seconds"]["place"] < 1, "the agents stay up"
    assert "Traceback" not in run.output
    assert len([line for line in run.lines if line.startswith("step 24/24 ")]) == 1
    assert not (run.folder / "driver.json").exists()


@pytest.mark.slow
def test_a_killed_agent_is_replaced(site: Site, digits: Path) -> None:
    with ray_run(site, "agent", *ENDLESS) as run:
        run.wait_running()
        pids = run.pids()
        nursery = psutil.Process(pids[1]).parent()
        assert nursery is not None
        agent = nursery.parent()
        assert agent is not None
        agent.kill()
        wait_gone([*pids.values(), nursery.pid])
        run.wait_running(2)
        assert cause(run) == "hardware"
        assert "was lost with its Ray worker" in run.output


@pytest.mark.slow
def test_a_run_shrinks_when_a_node_dies_and_grows_when_it_is_back(site: Site, digits: Path) -> None:
    with ray_run(site, "elastic", *ENDLESS, "launch.min_workers=1") as run:
        run.wait_running()
        site.cluster.kill_node(1)
        try:
            run.wait_running(2)
            assert run.events("attempt_started")[-1]["world_size"] == 1
            assert "was lost with its node" in run.output
        finally:
            site.cluster.start_node(1)
        run.wait_running(3)
        assert run.events("attempt_started")[-1]["world_size"] == 2
        assert cause(run) == "grow"
        assert run.events("attempt_running")[-1]["step"] == run.events("attempt_ended")[-1]["step"]


@pytest.mark.slow
def test_without_min_workers_a_lost_node_is_waited_for_and_then_the_error_is_clear(
    site: Site, digits: Path
) -> None:
    with ray_run(site, "waits", *ENDLESS, "launch.wait_for_workers_s=6") as run:
        run.wait_running()
        site.cluster.kill_node(1)
        try:
            assert run.end() == 2, run.output
        finally:
            site.cluster.start_node(1)
    assert "launch.num_workers (=2): the cluster has had room for 1 only" in run.output
    assert "Traceback" not in run.output


@pytest.mark.slow
def test_a_drained_node_is_left_with_everything_saved(site: Site, digits: Path) -> None:
    with ray_run(site, "drained", *ENDLESS, "launch.min_workers=1") as run:
        run.wait_running()
        address = site.cluster.node_address(1)
        done = site.command(
            "ray.scripts.scripts", "drain-node", "--address", site.cluster.address,
            "--node-id", node_id(site, address), "--reason", "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message", "spot", "--deadline-remaining-seconds", "60",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        try:
            run.wait_running(2)
        finally:
            site.cluster.kill_node(1)
            site.cluster.start_node(1)
        assert run.events("attempt_ended")[0]["cause"] == "preemption"
        assert run.events("attempt_running")[1]["step"] == run.events("attempt_ended")[0]["step"]
        assert run.events("attempt_started")[1]["hosts"] == [site.cluster.node_address(0)]
        assert f"{address} will be taken away" in run.output


@pytest.mark.slow
def test_a_process_told_to_stop_stops_all_and_nothing_is_lost(site: Site, digits: Path) -> None:
    with ray_run(site, "told", *ENDLESS) as run:
        run.wait_running()
        os.kill(run.pids()[1], signal.SIGTERM)
        run.wait_running(2)
        ended = run.events("attempt_ended")[0]
        assert ended["cause"] == "preemption"
        assert run.events("attempt_running")[1]["step"] == ended["step"]


@pytest.mark.slow
def test_a_stopped_process_is_found_named_and_replaced(site: Site, digits: Path) -> None:
    with ray_run(site, "hangs", *ENDLESS, "launch.hang.grace_s=2") as run:
        run.wait_running()
        run.wait(lambda: any(line.startswith("step 10/") for line in run.lines))
        os.kill(run.pids()[1], signal.SIGSTOP)
        run.wait_running(2)
        ended = run.events("attempt_ended")[0]
        assert (ended["cause"], ended["rank"]) == ("hang", 1)
        incident = Path(ended["incident"])
        assert (
            "all_reduce" in (incident / "stacks-rank-00000.txt").read_text()
            or "backward" in (incident / "stacks-rank-00000.txt").read_text()
        )
        assert "stopped" in (incident / "stacks-rank-00001.txt").read_text()
        assert "rank 1 on 127.0.0." in run.output


@pytest.mark.slow
def test_of_a_killed_driver_nothing_stays_and_the_same_command_goes_on(site: Site, digits: Path) -> None:
    with ray_run(site, "orphaned", *ENDLESS) as run:
        run.wait_running()
        families = [psutil.Process(pid) for pid in run.pids().values()]
        parents = [parent for one in families if (parent := one.parent())]
        pids = [one.pid for one in [*families, *parents]]
        run.process.kill()
        run.process.wait()
        wait_gone(pids)
    with ray_run(site, "orphaned", *ENDLESS) as run:
        run.wait_running(2)
        assert run.events("attempt_running")[-1]["step"] > 0
        second = RayRun(site, "orphaned", *ENDLESS)
        assert second.end() == 2
        assert f"process {run.process.pid} on " in second.output
        assert len(second.lines) == 1


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(site: Site, digits: Path) -> None:
    with ray_run(site, "impatient", *ENDLESS) as run:
        run.wait_running()
        pids = run.pids()
        os.kill(pids[1], signal.SIGSTOP)  # it can't save
        run.process.send_signal(signal.SIGINT)
        run.wait(lambda: "once more stops them at once" in run.output)
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.output
        wait_gone(list(pids.values()))
    assert "Traceback" not in run.output


@pytest.mark.slow
def test_a_crash_loop_in_code_ends_at_once_with_its_error(site: Site, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN)
    path = os.pathsep.join([str(tmp_path), site.cluster.env["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "convmlp_platform", "run", "jobs/pretrain_digits.yaml", "--set", "name=loop"],
        env=site.cluster.env | {"PYTHONPATH": path}, text=True, capture_output=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    first = done.stderr.splitlines()[0]
    assert "failed while starting: ZeroDivisionError: seven" in first
    assert "before the first step" in first
    assert 'raise ZeroDivisionError("seven")' in done.stderr
    assert "restarting" not in done.stdout


def node_id(site: Site, address: str) -> str:
    """Ray's id of a node of the cluster."""
    code = (
        "import sys, ray; ray.init(log_to_driver=False); "
        "print([n['NodeID'] for n in ray.nodes() if n['Alive'] and n['NodeManagerAddress'] == sys.argv[1]][0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, address],
        env=site.cluster.env,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]
