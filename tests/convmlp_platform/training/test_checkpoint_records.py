"""The journal's lines on checkpoints, from events in any order and over any number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointMetrics,
    CheckpointRetired,
    Journal,
    MetricsRecord,
    Record,
    read_chunk,
)
from convmlp_platform.training.outputs.checkpoint_log import CheckpointLog, Evaluated


class Lines:
    """A tracker that writes a journal and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(journal_path(folder))

    def log_checkpoint(self, record: Record) -> None:
        self.journal.append(record)


class Process:
    """One that trains the run in a folder; the next one has only the journal."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.tracker: Any = Lines(folder)
        self.log = CheckpointLog(self.tracker, folder, Evaluated("digits", "sha256:d"), {"world_size": 2})
        self.step = step

    def start(self) -> Process:
        self.log.start(self.step)
        return self

    def event(
        self,
        kind: Literal["committed", "loaded", "retired", "discarded", "failed"],
        step: int,
        digest: str = "",
    ) -> Process:
        facts = {"samples_seen": 8 * step, "metrics": {}}
        self.log.saw(SaveEvent(kind, step, f"/r/step-{step}", digest=digest, facts=facts))
        return self

    def logs(self, step: int, score: float) -> MetricsRecord:
        record = MetricsRecord(step=step, values={"eval/top1": score})
        self.tracker.journal.append(record)
        return record

    def evaluates(self, step: int, score: float) -> Process:
        self.log.evaluated(self.logs(step, score))
        return self


def lines(folder: Path) -> list[tuple[str, int, str]]:
    """Kind, step and digest (of metrics: their value) of what is on record of checkpoints."""
    found = []
    for record in read_chunk(journal_path(folder), max_bytes=1 << 20).records:
        if isinstance(record, CheckpointCommitted):
            found.append(("committed", record.step, record.digest))
        elif isinstance(record, CheckpointRetired):
            found.append((record.reason, record.step, record.digest))
        elif isinstance(record, CheckpointMetrics):
            found.append(("metrics", record.step, f"{record.digest} {record.values['eval/top1']:g}"))
    return found


def test_commit_and_evaluation_come_in_either_order(tmp_path: Path) -> None:
    Process(tmp_path).start().event("committed", 2, "a").evaluates(2, 1).evaluates(4, 2).event(
        "committed", 4, "b"
    )
    assert lines(tmp_path) == [
        ("committed", 2, "a"), ("metrics", 2, "a 1"), ("committed", 4, "b"), ("metrics", 4, "b 2"),
    ]  # fmt: skip


@pytest.mark.parametrize("evaluated_first", [False, True])
def test_a_process_that_died_between_the_two_is_made_up_for(tmp_path: Path, evaluated_first: bool) -> None:
    first = Process(tmp_path).start()
    if evaluated_first:
        first.evaluates(2, 1)
        Process(tmp_path, 2).event("loaded", 2, "a").start()
    else:
        first.event("committed", 2, "a")
        Process(tmp_path, 2).event("loaded", 2, "a").start().evaluates(2, 1)
    assert lines(tmp_path) == [("committed", 2, "a"), ("metrics", 2, "a 1")]


def test_metrics_on_record_without_a_link_are_linked_once_with_their_time(tmp_path: Path) -> None:
    first = Process(tmp_path).start().event("committed", 2, "a")
    own = first.logs(2, 1)  # and dies
    for _ in range(3):
        Process(tmp_path, 2).event("loaded", 2, "a").start()
    assert lines(tmp_path) == [("committed", 2, "a"), ("metrics", 2, "a 1")]
    (linked,) = (
        one for one in read_chunk(journal_path(tmp_path)).records if isinstance(one, CheckpointMetrics)
    )
    assert linked.time == own.time


def test_the_same_checkpoint_told_again_is_on_record_once(tmp_path: Path) -> None:
    """A step that is committed stays as it is: a stop right after a resume saves it once more."""
    for digest in ("a", "a", ""):
        Process(tmp_path, 2).event("loaded", 2, "a").start().event("committed", 2, digest)
    assert lines(tmp_path) == [("committed", 2, "a")]


def test_another_checkpoint_at_the_same_place_takes_its_place(tmp_path: Path) -> None:
    """A damaged one is written anew without having been removed first."""
    Process(tmp_path).start().event("committed", 2, "a").evaluates(2, 1).event("committed", 2, "b")
    assert lines(tmp_path)[2:] == [("rollback", 2, "a"), ("committed", 2, "b")]


def test_what_is_older_than_a_retired_one_is_gone_too(tmp_path: Path) -> None:
    """The process before died between removing it and saying so."""
    one = Process(tmp_path).start()
    for step in (2, 4, 6, 8):
        one.event("committed", step, f"{step}")
    one.event("retired", 4)
    assert [line for line in lines(tmp_path) if line[0] == "newer"] == [("newer", 2, "2"), ("newer", 4, "4")]


def test_going_back_marks_what_came_after_and_forgets_its_evaluations(tmp_path: Path) -> None:
    one = Process(tmp_path).start()
    one.event("committed", 2, "a").event("committed", 4, "b").evaluates(4, 1).evaluates(6, 2)
    one.step = 2
    one.event("loaded", 2, "a").event("discarded", 4).start()
    one.event("committed", 4, "c").event("committed", 6, "d").evaluates(6, 3)
    assert lines(tmp_path)[3:] == [
        ("rollback", 4, "b"), ("committed", 4, "c"), ("committed", 6, "d"), ("metrics", 6, "d 3"),
    ]  # fmt: skip


@pytest.mark.parametrize("again", ["b", "c"])
def test_a_process_killed_while_it_discarded_leaves_no_mark_undone(tmp_path: Path, again: str) -> None:
    Process(tmp_path).start().event("committed", 2, "a").event("committed", 4, "b").evaluates(4, 1)
    Process(tmp_path, 2).event("loaded", 2, "a").start().event("committed", 4, again)
    assert lines(tmp_path)[2:] == [("metrics", 4, "b 1"), ("rollback", 4, "b"), ("committed", 4, again)]


def test_a_journal_that_cannot_be_read_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable(_path: Path) -> list[Record]:
        raise OSError("Input/output error")

    monkeypatch.setattr("convmlp_platform.training.outputs.checkpoint_log.checkpoint_history", unreadable)
    Process(tmp_path).start().event("committed", 2, "a").evaluates(2, 1)
    assert lines(tmp_path) == [("committed", 2, "a"), ("metrics", 2, "a 1")]
    assert "can't be read" in caplog.text


def test_a_journal_of_an_older_release_is_readable(tmp_path: Path) -> None:
    path = journal_path(tmp_path)
    path.parent.mkdir()
    path.write_text('{"time":1,"kind":"metrics","step":2,"values":{"eval/top1":1.0}}\n')
    Process(tmp_path, 2).event("loaded", 2, "a").start()
    assert lines(tmp_path) == [("committed", 2, "a"), ("metrics", 2, "a 1")]
