"""The logs of ranks and the events of drivers on disk: nothing is lost but a torn end, and nothing stops the run."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from goodput_story import header

from convmlp_platform.goodput.goodput_log import GoodputWriter, read_log, read_logs
from convmlp_platform.health.events import RunEvents, read_events
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock


def no_space(*_arguments: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_lines_that_stay_are_kept_and_the_others_overwritten(tmp_path: Path) -> None:
    clock, writer = PhaseClock(), GoodputWriter(tmp_path, header(3, 1, 2, 0.0))
    writer.line(clock, 0, stays=True)
    for step in range(1, 50):
        clock.enter(Phase.DATA if step % 2 else Phase.COMPUTE, step=step)
        writer.line(clock, step, stays=False)
    writer.line(clock, 50, {"eval/top1": 99.0}, stays=True)
    size = writer.path.stat().st_size
    writer.line(clock, 51, stays=False)
    writer.line(clock, 52, stays=False)
    writer.close()
    (found,) = read_logs(tmp_path)
    assert found.header == header(3, 1, 2, 0.0)
    assert [line.step for line in found.lines] == [0, 50, 52]
    assert [line.total for line in found.lines] == sorted(line.total for line in found.lines)
    assert found.lines[1].metrics == {"eval/top1": 99.0}
    assert writer.path.stat().st_size - size < 1024


def test_every_cut_of_a_file_leaves_the_whole_lines_before_it(tmp_path: Path) -> None:
    clock, writer = PhaseClock(), GoodputWriter(tmp_path, header(1, 0, 1, 0.0))
    for step in range(3):
        clock.enter(Phase.COMPUTE)
        writer.line(clock, step, stays=True)
    content = writer.path.read_bytes()
    cut = tmp_path / "cut.jsonl"
    for length in range(0, len(content), 7):
        cut.write_bytes(content[:length])
        found = read_log(cut)
        text = content[:length].split(b"\n")
        whole = len(text) - 1 + bool(text[-1].rstrip().endswith(b"}}"))
        assert (found is None) == (whole == 0) or length < 320
        if found is not None:
            assert [line.step for line in found.lines] == list(range(len(found.lines)))
            assert len(found.lines) >= whole - 1
    cut.write_bytes(content.replace(b'"COMPUTE":', b'"COMPUTE":"x', 1))
    damaged = read_log(cut)
    assert damaged is not None and len(damaged.lines) == 2


def test_a_full_disk_costs_lines_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = GoodputWriter(tmp_path, header(1, 0, 1, 0.0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_space)
        for step in range(3):
            writer.line(PhaseClock(), step, stays=True)
    assert [record.getMessage() for record in caplog.records] == [
        f"goodput: {writer.path} can't be written: [Errno 28] No space left on device"
    ]
    writer.line(PhaseClock(), 9, stays=True)
    found = read_log(writer.path)
    assert found is not None and [line.step for line in found.lines] == [9]
    GoodputWriter(tmp_path / "attempt-000001" / "rank-00000.jsonl", header(1, 0, 1, 0.0)).close()


def test_events_keep_their_order_and_what_json_cannot_say_becomes_text(tmp_path: Path) -> None:
    events = RunEvents(tmp_path / "run" / "events.jsonl")
    events.append("driver_started", host="a", num_workers=2)
    events.append("attempt_ended", incident=Path("x"), message="two\nlines")
    first, second = read_events(events.path)
    assert (first["kind"], first["num_workers"]) == ("driver_started", 2)
    assert (second["incident"], second["message"]) == ("x", "two\nlines")
    assert 0 < first["time"] <= second["time"]


def test_a_torn_event_is_left_out_and_the_next_is_whole(tmp_path: Path) -> None:
    events = RunEvents(tmp_path / "events.jsonl")
    events.append("one")
    events.append("two")
    content = events.path.read_bytes()
    for cut in range(len(content) // 2 + 1, len(content)):
        events.path.write_bytes(content[:cut])
        before = [event["kind"] for event in read_events(events.path)]
        events.append("three")
        assert [event["kind"] for event in read_events(events.path)] == [*before, "three"]


def test_events_that_cannot_be_written_stop_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "write", no_space)
    RunEvents(tmp_path / "events.jsonl").append("one")
    assert "event one can't be written" in caplog.text
    assert read_events(tmp_path / "nothing.jsonl") == []
