"""A large run's account, from a part of its logs, is that from all of them."""

from __future__ import annotations

import random
from dataclasses import asdict
from json import dumps
from pathlib import Path

import pytest
from goodput_story import T0, header

from convmlp_platform.goodput import excerpt
from convmlp_platform.goodput.account import Goodput, account
from convmlp_platform.goodput.excerpt import read_within
from convmlp_platform.goodput.goodput_log import LINE_BYTES, LogLine, read_logs
from convmlp_platform.health.events import append_line

RANKS = 6
EVENTS = [
    {"time": T0, "kind": "driver_started", "num_workers": RANKS},
    {"time": T0 + 1, "kind": "attempt_started", "start": 1, "world_size": RANKS},
    {"time": T0 + 20, "kind": "attempt_running", "start": 1, "step": 1, "seconds": {}},
    {"time": T0 + 4020, "kind": "attempt_ended", "start": 1, "cause": "hardware"},
    {"time": T0 + 4030, "kind": "attempt_started", "start": 2, "world_size": RANKS},
    {"time": T0 + 4050, "kind": "attempt_running", "start": 2, "step": 641, "seconds": {}},
    {"time": T0 + 8060, "kind": "attempt_ended", "start": 2, "cause": "finished"},
    {"time": T0 + 8061, "kind": "driver_ended", "exit_code": 0},
]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two attempts of six ranks, of which the second went on after a step in the midst of the first's lines."""
    top, rng = tmp_path_factory.mktemp("goodput"), random.Random(1)
    for attempt, began, first in ((1, 2.0, 0), (2, 4031.0, 640)):
        for rank in range(RANKS):
            path = top / f"attempt-{attempt:06d}" / f"rank-{rank:05d}.jsonl"
            path.parent.mkdir(exist_ok=True)
            append_line(
                path,
                dumps(asdict(header(attempt, rank, RANKS, began, start_step=first))).ljust(LINE_BYTES - 1),
            )
            seconds = {"START": 15.0, "COMPILE": 3.0, "DATA": 0.0, "COMPUTE": 0.0, "CHECKPOINT": 0.0}
            for number in range(400):
                for name, most in (("DATA", 2.0), ("COMPUTE", 8.0), ("CHECKPOINT", 0.5)):
                    seconds[name] = round(seconds[name] + rng.uniform(0.5, 1.0) * most, 6)
                metrics = {"eval/top1": rng.uniform(0, 90)} if rank == 0 and number % 50 == 7 else {}
                phase = "FINISH" if attempt == 2 and number == 399 else "DATA"
                one = LogLine(
                    T0 + began + sum(seconds.values()), first + 4 * number, phase, dict(seconds), metrics
                )
                append_line(path, dumps(asdict(one)).ljust(LINE_BYTES - 1))
    return top


@pytest.mark.parametrize("most", [60, 300, 2000])
def test_its_sums_are_those_of_all_lines(logs: Path, most: int) -> None:
    whole, part = account(read_logs(logs), EVENTS), account(read_within(logs, most=most), EVENTS)
    assert part.metrics() == pytest.approx(whole.metrics(), abs=1e-9)
    assert (part.accuracy, part.wall_s) == (whole.accuracy, whole.wall_s)
    assert [one.seconds for one in part.interruptions] == pytest.approx(
        [one.seconds for one in whole.interruptions]
    )
    for here, there in zip(part.by_worker, whole.by_worker, strict=True):
        assert here == pytest.approx(there, abs=1e-6)
    assert whole.metrics()["goodput/lost_work"] > 0.1, "the edge lies within the first attempt"


def test_no_more_lines_are_read_than_there_is_room_for(logs: Path) -> None:
    found = read_within(logs, most=240)
    of_others = [len(file.lines) for file in found if file.header.rank]
    assert max(of_others) < 20 + 40, "those at the end and at the edge besides"
    assert sum(len(file.lines) for file in read_logs(logs)) == 2 * RANKS * 400


def test_a_small_run_is_read_whole(logs: Path) -> None:
    assert read_within(logs) == read_logs(logs)


def test_damage_costs_lines_and_nothing_else(logs: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    for path in sorted(logs.rglob("*.jsonl")):
        content = bytearray(path.read_bytes())
        for _ in range(20):
            content[rng.randrange(LINE_BYTES, len(content))] = rng.randrange(256)
        if path.name == "rank-00003.jsonl":
            content = content[: rng.randrange(len(content))]
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_bytes(content)
    (tmp_path / "attempt-000002" / "rank-00005.jsonl").write_bytes(b"")
    found: Goodput = account(read_within(tmp_path, most=100), EVENTS)
    whole = account(read_logs(tmp_path), EVENTS)
    assert found.goodput == pytest.approx(whole.goodput, abs=0.02)
    assert found.total_s == pytest.approx(whole.total_s)


def test_a_line_longer_than_others_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "attempt-000001" / "rank-00001.jsonl"
    path.parent.mkdir()
    append_line(path, dumps(asdict(header(1, 1, 2, 0.0))))
    for number in range(2000):
        metrics = {f"m{place}": 1.0 for place in range(300 * (number == 1000))}
        append_line(
            path, dumps(asdict(LogLine(T0 + number, number, "DATA", {"DATA": float(number)}, metrics)))
        )
    with excerpt._opened(path) as log:
        begin, end, content = log.line(log.size // 2)
        assert content.startswith(b"{") and content.endswith(b"}") and end - begin == len(content) + 1
    (found,) = read_within(tmp_path, most=100)
    assert found.lines[-1].step == 1999 and len(found.lines) > 90
