"""A run of two workers of which one dies with its node, told second by second; shared by tests of goodput."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any

from convmlp_platform.goodput.goodput_log import GoodputFile, LogHeader, LogLine
from convmlp_platform.health.events import RunEvents, append_line

T0 = 1_800_000_000.0


def header(attempt: int, rank: int, world: int, began: float, **more: Any) -> LogHeader:
    values: dict[str, Any] = {
        "parent": attempt - 1,
        "start_step": 0,
        "start": attempt,
        "pid": 100 + attempt,
    } | more
    return LogHeader(
        identity="id", attempt=attempt, rank=rank, world_size=world, host=f"host{rank}", device="cpu",
        began=T0 + began, **values,
    )  # fmt: skip


def line(at: float, step: int, phase: str, **seconds: float) -> LogLine:
    return LogLine(T0 + at, step, phase, seconds)


EVENTS: list[dict[str, Any]] = [
    {"time": T0, "kind": "driver_started", "num_workers": 2, "min_workers": 1},
    {"time": T0 + 1, "kind": "attempt_started", "start": 1, "world_size": 2},
    {"time": T0 + 10, "kind": "attempt_running", "start": 1, "step": 1, "seconds": {}},
    {
        "time": T0 + 45.5, "kind": "attempt_ended", "start": 1, "cause": "hardware", "rank": 1, "host": "host1",
        "message": "the node of rank 1 is gone", "stalled_s": None,
    },
    {"time": T0 + 46, "kind": "attempt_started", "start": 2, "world_size": 1},
    {"time": T0 + 53, "kind": "attempt_running", "start": 2, "step": 21, "seconds": {}},
    {"time": T0 + 67, "kind": "attempt_ended", "start": 2, "cause": "finished"},
    {"time": T0 + 68, "kind": "driver_ended", "exit_code": 0},
]  # fmt: skip


def first_start(skew: float = 0.0, **more: Any) -> list[GoodputFile]:
    """Both ranks begin at 3 s, save step 20 until 31 s, and are last seen at 41 s after step 30."""
    lines = [
        line(8, 0, "START", START=5),
        line(30, 20, "CHECKPOINT", START=5, COMPILE=2, DATA=2, COMPUTE=18),
        line(31, 20, "DATA", START=5, COMPILE=2, DATA=2, COMPUTE=18, CHECKPOINT=1),
        line(41, 30, "DATA", START=5, COMPILE=2, DATA=3, COMPUTE=27, CHECKPOINT=1),
    ]
    return [GoodputFile(header(1, rank, 2, 3 + skew, **more), lines) for rank in (0, 1)]


def second_start(**more: Any) -> list[GoodputFile]:
    """Rank 0 alone, from step 20 at 48 s; the last evaluation's accuracy is 80 %. Training ends at 66 s."""
    lines = [
        line(52, 20, "START", START=4),
        line(60, 27, "EVALUATE", START=4, COMPILE=1, DATA=1, COMPUTE=6),
        LogLine(
            T0 + 65, 27, "EVALUATE", {"START": 4, "COMPILE": 1, "DATA": 1, "COMPUTE": 6, "EVALUATE": 5},
            {"eval/top1": 80.0, "eval/loss": 0.5},
        ),
        line(66, 27, "FINISH", START=4, COMPILE=1, DATA=1, COMPUTE=6, EVALUATE=5, FINISH=1),
    ]  # fmt: skip
    return [GoodputFile(header(2, 0, 1, 48, parent=1, start_step=20, **more), lines)]


TRUTH = {
    "useful_step": 2 * 18 + 6,
    "evaluation": 5,
    "data_wait": 2 * 2 + 1,
    "checkpoint": 2 + 1,
    "compile": 2 * 2 + 1,
    "restart": 2 * (3 + 5) + 2.5 + 4,
    "lost_work": 2 * 14.5,
    "idle": 20.5,
}


def write_run(run: Path, price: float | None = None) -> Path:
    """The story as files in the folder `run`; returns it."""
    money: dict[str, Any] = {"price_per_hour": price, "currency": "EUR"}
    for file in [*first_start(**money), *second_start(**money)]:
        path = run / "goodput" / f"attempt-{file.header.attempt:06d}" / f"rank-{file.header.rank:05d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        append_line(path, dumps(asdict(file.header)))
        for one in file.lines:
            append_line(path, dumps(asdict(one)))
    events = RunEvents(run / "events.jsonl")
    for event in EVENTS:
        events.append(**event)
    return run
