"""The agent and its nursery, as real processes, without Ray and without torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from convmlp_platform.launch.workers.agent import Agent
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


def test_nothing_outlives_the_nursery(agent: Agent) -> None:
    pid, reader = sleeping(agent)
    nursery = psutil.Process(pid).parent()
    assert nursery is not None
    nursery.kill()
    report, _ = watch_until(agent, lambda report: report.broken)
    assert report.exit is not None
    wait_gone(pid, reader)
    assert agent.kill()
    assert agent.start({"start": 2, "do": 0}) is None
    for path in agent.folder.iterdir():  # nobody else is left to do it; the next agent on this node would
        path.unlink()
    agent.folder.rmdir()


def test_a_nursery_that_cannot_import_says_why() -> None:
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
