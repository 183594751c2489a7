"""Real ranks that stand still for real reasons: who is named, where, and with which stacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gloo_ranks
import pytest

from convmlp_platform.config.sections.resilience import HangSection
from convmlp_platform.health.hangs.hang_watch import Hang, HangWatch, RankView
from convmlp_platform.health.hangs.process_view import state_of
from convmlp_platform.health.hangs.stacks import collect_stacks
from convmlp_platform.health.hangs.waiting import WaitsFor, waits_for
from convmlp_platform.health.heartbeat.heartbeat import read_heartbeat
from convmlp_platform.health.heartbeat.phases import Phase

CASES = ["stopped", "gil", "fifo", "reader"]
GRACE_S = 2.0


@dataclass
class Case:
    """A pair of ranks, watched."""

    folder: Path
    pids: list[int]
    watch: HangWatch
    hang: Hang | None = None
    stacks: dict[int, str] | None = None

    def look(self) -> None:
        views = [
            RankView(rank, "here", read_heartbeat(self.folder / f"heartbeat-{rank}"), state_of(pid))
            for rank, pid in enumerate(self.pids)
        ]
        stopped = self.folder.name == "stopped" and views[1].heartbeat
        if stopped and stopped.step >= gloo_ranks.FAULT_STEP and views[1].state != "T":
            os.kill(self.pids[1], signal.SIGSTOP)
        self.watch.update(views)
        found = self.watch.check()
        if found is not None:
            ranks = enumerate(self.pids)
            self.stacks = {rank: collect_stacks(pid, self.folder / f"stacks-{rank}") for rank, pid in ranks}
            self.hang = found.with_stacks(self.stacks)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """All cases go wrong at the same time, so that the tests wait once."""
    top = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, gloo_ranks.__file__, str(top), *CASES]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as host:
        assert host.stdout is not None
        pids = json.loads(host.stdout.readline())
        section = HangSection(grace_s=GRACE_S)
        found = {case: Case(top / case, pids[case], HangWatch(section, 2)) for case in CASES}
        deadline = time.monotonic() + 60.0
        while any(case.hang is None for case in found.values()) and time.monotonic() < deadline:
            for case in found.values():
                if case.hang is None:
                    case.look()
            time.sleep(0.1)
        yield found
        host.communicate()  # closes its input: it kills its ranks


def hang_of(cases: dict[str, Case], name: str) -> tuple[Hang, dict[int, str]]:
    case = cases[name]
    assert case.hang is not None and case.stacks is not None
    assert case.hang.is_sure and case.hang.rank == 1, case.hang.message()
    assert case.hang.stalled_s > GRACE_S
    assert waits_for(case.stacks[0]) is WaitsFor.RANKS, "rank 0 waits in its all-reduce"
    return case.hang, case.stacks


def test_a_stopped_process_is_named_without_waiting_for_its_answer(cases: dict[str, Case]) -> None:
    hang, stacks = hang_of(cases, "stopped")
    assert "stopped by a signal (state T)" in hang.message()
    assert "none: it is stopped and can't answer" in stacks[1]


def test_a_process_that_holds_the_interpreter_lock_shows_its_stack(cases: dict[str, Case]) -> None:
    hang, stacks = hang_of(cases, "gil")
    assert (hang.phase, hang.step) == (Phase.COMPUTE, gloo_ranks.FAULT_STEP)
    assert waits_for(stacks[1]) is WaitsFor.NOTHING
    assert "in match" in hang.message() and "gloo_ranks.py" in stacks[1]


def test_a_read_that_never_ends_is_named_with_its_shard(cases: dict[str, Case]) -> None:
    hang, stacks = hang_of(cases, "fifo")
    assert (hang.phase, hang.note) == (Phase.DATA, gloo_ranks.SHARD)
    assert waits_for(stacks[1]) is WaitsFor.DATA
    assert "in __getitem__" in hang.message()


def test_a_stuck_reader_process_is_named_with_its_shard_and_its_stack(cases: dict[str, Case]) -> None:
    hang, stacks = hang_of(cases, "reader")
    assert (hang.phase, hang.note) == (Phase.DATA, gloo_ranks.SHARD)
    assert len(hang.readers) == 1 and "(train-000017): waiting" in hang.readers[0]
    assert waits_for(stacks[1]) is WaitsFor.DATA
    assert stacks[1].count("Python stacks of") == 2 and "in __getitem__" in stacks[1]
