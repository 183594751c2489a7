"""The agent and its node's fork server, as real processes, without Ray and without torch."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from convmlp_platform.launch.workers import fork_server_link
from convmlp_platform.launch.workers.agent import Agent
from convmlp_platform.launch.workers.fork_server_link import SERVER_PREFIX, place_of
from convmlp_platform.launch.workers.worker_report import Report


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    agent = Agent(["fake_training"])
    assert agent.warm() is None
    yield agent
    agent.close()
    assert not agent.folder.exists()


def watch_until(agent: Agent, seen: Callable[[Report], object]) -> tuple[Report, list[str]]:
    lines: list[str] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        report = agent.watch(0.2)
        lines += [line for _, line in report.lines]
        if seen(report):
            return report, lines
    raise AssertionError("not seen")


def sleeping(agent: Agent, start: int = 1) -> tuple[int, int]:
    """Start a process with a reader; both ids."""
    pid = agent.start({"start": start, "do": "sleep"})
    lines: list[str] = []
    watch_until(agent, lambda report: lines.extend(line for _, line in report.lines) or lines)
    assert pid is not None
    return pid, int(lines[0].split()[1])


def server_of(pid: int) -> psutil.Process:
    server = psutil.Process(pid).parent()
    assert server is not None
    return server


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_gone(*pids: int) -> None:
    deadline = time.monotonic() + 20
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_output_comes_before_the_end_and_all_of_it(agent: Agent) -> None:
    for start, code in enumerate((0, 1, 7), 1):
        agent.start({"start": start, "do": code})
        report, lines = watch_until(agent, lambda report: report.exit)
        assert sorted(lines) == ["last words", "to be read"]
        assert report.exit is not None
        assert (report.exit.code, report.exit.outcome) == (code, {"kind": "finished"})
        assert report.exit.last_words == ("last words",)
        assert abs(report.exit.at - time.time()) < 30
        assert report.start == start


def test_a_killed_process_is_told_at_once_and_its_reader_goes_with_it(agent: Agent) -> None:
    pid, reader = sleeping(agent)
    os.kill(pid, signal.SIGKILL)
    report, _ = watch_until(agent, lambda report: report.exit)
    assert report.exit is not None
    assert (report.exit.code, report.exit.outcome) == (-signal.SIGKILL, None)
    assert report.state == "X"
    wait_gone(pid, reader)
    assert sleeping(agent, 2)[0] != pid


def test_what_is_stopped_can_be_looked_at_and_killed(agent: Agent) -> None:
    pid, reader = sleeping(agent)
    assert "fake_training.py" in agent.stacks(5.0)
    os.kill(pid, signal.SIGSTOP)
    report, _ = watch_until(agent, lambda report: report.state == "T")
    assert report.heartbeat is not None
    assert report.heartbeat.pid == pid
    assert "stopped" in agent.stacks(5.0)
    assert agent.kill()
    wait_gone(pid, reader)


def test_sigterm_reaches_the_process_alone(agent: Agent) -> None:
    pid, reader = sleeping(agent)
    agent.send_signal(signal.SIGTERM)
    report, _ = watch_until(agent, lambda report: report.exit)
    assert report.exit is not None
    assert report.exit.code == 0
    wait_gone(pid, reader)


def test_nothing_outlives_the_fork_server(agent: Agent) -> None:
    pid, reader = sleeping(agent)
    server_of(pid).kill()
    report, _ = watch_until(agent, lambda report: report.broken)
    assert report.exit is not None
    wait_gone(pid, reader)
    assert agent.kill()
    assert agent.start({"start": 2, "do": 0}) is None
    for path in agent.folder.iterdir():  # nobody else is left to do it; the next agent on this node would
        path.unlink()
    agent.folder.rmdir()


def test_a_fork_server_that_cannot_import_says_why() -> None:
    agent = Agent(["no_such_module"])
    broken = agent.warm()
    assert broken is not None
    assert "No module named 'no_such_module'" in broken


def test_the_folder_of_a_killed_agent_is_removed_by_the_next(agent: Agent) -> None:
    left = agent.folder.with_name("convmlp-agent-left-behind")
    left.mkdir(exist_ok=True)
    another = Agent(["json"])
    assert not left.exists()
    assert agent.folder.exists()
    another.close()


def test_agents_of_a_run_on_a_node_share_a_server_but_not_what_they_print_nor_their_gpus(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    another = Agent(agent.modules, agent.key)
    assert another.warm() is None
    (first, _), (second, _) = sleeping(agent), sleeping(another)
    assert server_of(first).pid == server_of(second).pid
    assert psutil.Process(first).environ().get("CUDA_VISIBLE_DEVICES") is None
    lines = []
    for number, one in enumerate((agent, another), 1):
        assert one.kill()
        one.start({"start": 2, "do": "visible", "number": number})
        lines.append(watch_until(one, lambda report: report.exit)[1])
    assert [[line for line in said if line.startswith("sees")] for said in lines] == [
        ["sees None"],
        ["sees 1"],
    ]
    another.close()
    assert not another.folder.exists()
    assert sleeping(agent, 3)[0] > 0, "it goes on for the other"


def test_the_process_of_a_killed_agent_ends_and_the_other_agents_goes_on(agent: Agent) -> None:
    code = (
        "import sys, time; from convmlp_platform.launch.workers.agent import Agent\n"
        "one = Agent(sys.argv[2:], sys.argv[1]); one.warm()\n"
        "print(one.start({'start': 1, 'do': 'sleep'}), one.folder, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, agent.key, *agent.modules], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        pid, folder = other.stdout.readline().split()
        own, _ = sleeping(agent)
        assert server_of(own).pid == server_of(int(pid)).pid
        other.kill()
    wait_gone(int(pid))
    assert not is_gone(own)
    deadline = time.monotonic() + 20
    while Path(folder).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_is_killed_breaks_its_agents_and_the_next_one_starts_another(agent: Agent) -> None:
    another = Agent(agent.modules, agent.key)
    pid, reader = sleeping(another)
    server_of(pid).kill()
    for one in (agent, another):
        report, _ = watch_until(one, lambda report: report.broken)
        assert "the process that training starts from ended" in str(report.broken)
    wait_gone(pid, reader)
    third = Agent(agent.modules, agent.key)
    assert third.warm() is None
    sleeping(third)
    third.close()
    assert not third.folder.exists()
    for one in (agent, another):
        shutil.rmtree(one.folder)


def test_each_agent_of_a_server_that_cannot_import_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    )
    agents = [Agent(["fake_training", "no_such_module"], "of-no-module") for _ in range(3)]
    for one in agents:
        assert "No module named 'no_such_module'" in str(one.warm())
    assert not place_of("of-no-module").exists()
    for one in agents:
        shutil.rmtree(one.folder, ignore_errors=True)


def test_the_socket_is_its_owners_alone_and_gone_with_the_last_agent(agent: Agent) -> None:
    place = place_of(agent.key)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    left = place.with_name(f"{SERVER_PREFIX}left-behind")
    left.mkdir(exist_ok=True)
    another = Agent(agent.modules, agent.key)
    assert not left.exists()
    another.close()
    assert place.exists()
    pid, _ = sleeping(agent)
    server = server_of(pid)
    agent.close()
    wait_gone(server.pid)
    assert not place.exists()


def test_who_stops_amid_its_greeting_holds_up_nobody_for_long(agent: Agent) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(place_of(agent.key) / "socket"))
        began = time.monotonic()
        assert sleeping(agent)[0] > 0
        assert time.monotonic() - began < 30


def test_agents_find_the_server_that_the_driver_has_started_under_its_nodes_key(agent: Agent) -> None:
    key = agent.key
    agent.share(f"{key}-{'a' * 56}")  # as long as Ray's ids of nodes
    another = Agent(agent.modules, f"{key}-{'a' * 56}")
    (first, _), (second, _) = sleeping(agent), sleeping(another)
    assert server_of(first).pid == server_of(second).pid
    agent.close()
    assert not is_gone(second)
    another.close()
    assert not place_of(key).exists() and not place_of(f"{key}-{'a' * 56}").exists()
    wait_gone(second)


def test_an_agent_without_a_server_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fork_server_link, "place_of", lambda key: tmp_path / "no" / "folder")
    agent = Agent(["fake_training"])
    assert "No such file or directory" in str(agent.warm())
    assert agent.start({"start": 1, "do": "sleep"}) is None
    assert agent.watch(0.0).broken
    agent.close()
    shutil.rmtree(agent.folder)
