"""A run in a row: each state from what its driver, its ranks or another machine left on disk; damage is said."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from run_folders import Story, died, finished, stopped

from convmlp_platform.config.sweep_job import SchedulerSection
from convmlp_platform.health.events import RunEvents
from convmlp_platform.overview import run_reader
from convmlp_platform.overview.find_runs import FoundRun, find_runs
from convmlp_platform.overview.run_overview import RunOverview, overview_of
from convmlp_platform.overview.run_reader import JournalEnd, RunReader
from convmlp_platform.overview.runs_table import newest_first, table_lines
from convmlp_platform.runs.lease import NAME, run_lease
from convmlp_platform.runs.trial_record import Ended, write_end
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import Journal, MetricsRecord, Status, Tags
from data_prep.storage.lock_holder import Holder

NOW = 1_790_000_000.0


def look(run: Path, now: float = NOW) -> RunOverview:
    return overview_of(FoundRun(run, run.name), now)


def state(run: Path, now: float = NOW) -> tuple[str, str]:
    found = look(run, now)
    return found.state, found.note


def held_elsewhere(run: Path, renewed: float) -> None:
    """The lease of a driver on another machine."""
    holder = Holder("gpu-07", 1, "another machine", 1.0, "0" * 16)
    (run / NAME).write_text(json.dumps(asdict(holder)))
    os.utime(run / NAME, (renewed, renewed))


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    run = Story(NOW, pid=os.getpid(), causes=("hardware", "hang", "hardware")).write(tmp_path / "run")
    with run_lease(run).hold():
        found = look(run)
    assert (found.state, found.note) == ("running", "")
    assert (found.step, found.steps, found.workers, found.saved) == (420, 1000, 2, 400)
    assert found.left_s == pytest.approx((1000 - 420) / 2.0)
    assert (found.metric, found.best) == ("top1", 54.0)
    assert found.restarts == ("hardware", "hang", "hardware")
    assert found.goodput == pytest.approx(0.9 * 210 / 280, abs=0.03)
    assert json.loads(json.dumps(found.to_dict(NOW)))["restarts"] == ["hardware", "hang", "hardware"]


@pytest.mark.parametrize(("told", "share"), [("42.88 %", 0.4288), ("much", None)])
def test_a_finished_run_has_the_goodput_that_all_its_ranks_gave(
    tmp_path: Path, told: str, share: float | None
) -> None:
    """As `convmlp goodput`, the report and MLflow say it; an edited one is as if it hadn't been told."""
    run = finished(tmp_path / "run", NOW)
    by_rank_0 = look(run).goodput
    journal = Journal(journal_path(run))
    journal.append(Tags(values={"goodput": told}))
    journal.close()
    found = look(run)
    assert found.state == "finished" and found.goodput == pytest.approx(by_rank_0 if share is None else share)


def test_time_left_counts_from_the_last_sign(tmp_path: Path) -> None:
    run = Story(NOW, pid=os.getpid()).write(tmp_path / "run")
    with run_lease(run).hold():
        assert look(run, NOW + 10).left_s == pytest.approx(290.0 - 10.0)
        assert look(run, NOW + 9999).left_s == 0.0


def test_the_metric_is_the_tasks_own(tmp_path: Path) -> None:
    metrics = {"eval/box_ap": 20.0, "eval/mask_ap": 18.0, "eval/loss": 1.0}
    found = look(finished(tmp_path / "run", NOW, task="mask_rcnn", metrics=metrics))
    assert (found.metric, found.best) == ("mask_ap", 28.0)


def test_ends(tmp_path: Path) -> None:
    assert state(finished(tmp_path / "a", NOW)) == ("finished", "")
    assert state(stopped(tmp_path / "b", NOW)) == ("stopped", "by SIGTERM")
    name, note = state(died(tmp_path / "c", NOW))
    assert name == "died"
    assert (
        note == "hardware: rank 1 on gpu-00 died of signal SIGBUS; launch.restarts.hardware (=3) is used up"
    )
    # Its driver was killed: it wrote no end.
    assert state(Story(NOW).write(tmp_path / "d")) == ("died", "its driver (process 4711 on login-1) is gone")
    assert look(tmp_path / "d").left_s is None


def test_a_driver_that_waits(tmp_path: Path) -> None:
    run, events = tmp_path / "run", RunEvents(tmp_path / "run" / "events.jsonl")
    with run_lease(run).hold():
        assert state(run)[0] == "running"  # under torchrun there are no events
        events.append("driver_started", time=NOW, pid=os.getpid(), host="here", num_workers=2)
        assert state(run) == ("waiting", "for workers")
        events.append("attempt_started", time=NOW, start=1, world_size=2)
        assert state(run) == ("running", "starting")
        events.append("attempt_running", time=NOW, start=1)
        assert state(run) == ("running", "")
        events.append("attempt_ended", time=NOW, start=1, cause="hang", message="rank 1 stands still\nstacks")
        assert state(run) == ("waiting", "restarts after: hang: rank 1 stands still")
        events.append("attempt_ended", time=NOW, start=1, cause="grow", message="")
        assert state(run) == ("waiting", "for workers")


def test_a_driver_elsewhere_counts_by_its_signs_of_life(tmp_path: Path) -> None:
    run = Story(NOW).write(tmp_path / "run")
    held_elsewhere(run, NOW - 5)
    assert state(run) == ("running", "")
    held_elsewhere(run, NOW - 720)
    shutil.rmtree(run / "tracking")
    assert state(run, NOW + 720) == ("silent", "no sign of life from gpu-07 for 12 min")


def test_a_driver_elsewhere_that_renews_lives_whatever_its_clock_says(tmp_path: Path) -> None:
    run = Story(NOW).write(tmp_path / "run")
    held_elsewhere(run, NOW - 5000)
    reader = RunReader(run)
    assert reader.lease is not None and reader.lease.renewed == NOW - 5000
    held_elsewhere(run, NOW - 4997)
    reader.read()
    assert reader.lease.renewed == pytest.approx(time.time(), abs=60)


def test_a_run_without_a_driver_counts_by_its_journal(tmp_path: Path) -> None:
    run = tmp_path / "run"
    journal = Journal(journal_path(run))
    journal.append(Status(time=int(NOW * 1000), status="RUNNING"))
    assert state(run, NOW + 5) == ("running", "")
    assert state(run, NOW + 720) == ("silent", "no sign of life for 12 min")
    for status, name in (("KILLED", "stopped"), ("FAILED", "died"), ("FINISHED", "finished")):
        journal.append(Status(time=int(NOW * 1000), status=status))
        assert state(run)[0] == name


def test_a_later_start_without_events_decides(tmp_path: Path) -> None:
    run = died(tmp_path / "run", NOW)
    journal = Journal(journal_path(run))
    journal.append(Status(time=int((NOW + 500) * 1000), status="FINISHED"))
    assert state(run)[0] == "finished"


def test_a_trial_ends_as_its_sweep_says(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run", NOW)
    write_end(run, Ended(status="stopped", steps=420, scheduler=SchedulerSection(name="asha")))
    assert state(run) == ("stopped", "by the sweep's scheduler")
    write_end(run, Ended(status="failed", steps=0, reason="\nno room\nmore", scheduler=SchedulerSection()))
    assert state(run) == ("died", "no room")


def test_damage_is_said_in_the_row(tmp_path: Path) -> None:
    for name, content in (("run.json", '{"ident'), ("job.json", "[]")):
        run = finished(tmp_path / name, NOW)
        (run / name).write_text(content)
        found = look(run)
        assert found.state == "damaged" and found.note.startswith(f"{name} "), found.note
        assert (found.step, found.best) == (1000, 60.0)
    run = finished(tmp_path / "half", NOW)
    (run / "run.json").unlink()
    assert state(run) == ("damaged", "run.json is missing")
    run = finished(tmp_path / "journal", NOW)
    with journal_path(run).open("ab") as file:
        file.write(b"\x00" * 50 + b"\n")
    assert state(run) == ("damaged", "tracking/journal.jsonl: 1 damaged lines")
    run = finished(tmp_path / "torn", NOW)
    for path in (run / "events.jsonl", run / "evaluations.jsonl", journal_path(run)):
        path.write_bytes(path.read_bytes()[:-7])
    assert look(run).state == "finished"
    folder = tmp_path / "folder"
    (folder / "events.jsonl").mkdir(parents=True)
    assert state(folder) == ("damaged", "events.jsonl: Is a directory")


def test_damage_doesnt_hide_that_a_run_goes_on(tmp_path: Path) -> None:
    run = Story(NOW, pid=os.getpid()).write(tmp_path / "run")
    (run / "job.json").write_text("{")
    with run_lease(run).hold():
        name, note = state(run)
    assert name == "running" and note.startswith("job.json can't be read")
    assert state(run)[0] == "damaged"


def test_any_cut_or_garbage_is_a_row(tmp_path: Path) -> None:
    """No file of a run that was cut anywhere, or overwritten, ends in a traceback."""
    whole = died(tmp_path / "whole", NOW)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    for number, name in enumerate(files):
        content = (whole / name).read_bytes()
        for bad in (
            b"",
            content[: len(content) // 2],
            b"\xff\xfe\x00garbage\n",
            b'{"time": 1e400}\n',
            b"null\n",
        ):
            run = tmp_path / f"{number}"
            shutil.copytree(whole, run, dirs_exist_ok=True)
            (run / name).write_bytes(bad)
            assert "Error" not in look(run).note, (name, bad)


def test_a_bug_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path / "run", NOW)
    monkeypatch.setattr(run_reader, "account", lambda *_: 1 / 0)
    assert state(run) == ("damaged", "can't be read: ZeroDivisionError: division by zero")


@contextlib.contextmanager
def another_user() -> Iterator[Path]:
    """Within: this process may read only what everybody may; yields a folder that everybody may."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_what_this_user_may_not_read_is_said() -> None:
    with another_user() as place:
        finished(place / "open", NOW)
        finished(place / "closed", NOW).chmod(0o700)
        (finished(place / "file", NOW) / "job.json").chmod(0o600)
        (finished(place / "inner", NOW) / "goodput").chmod(0o700)
        os.seteuid(65534)
        rows = {row.name: row for row in (overview_of(found, NOW) for found in find_runs(place))}
    assert {name: row.state for name, row in rows.items()} == {
        "open": "finished", "closed": "hidden", "file": "hidden", "inner": "hidden",
    }  # fmt: skip
    assert rows["closed"].note == "Permission denied"
    assert rows["file"].note.startswith("job.json") and "Permission denied" in rows["file"].note


def test_runs_trials_and_nothing_else_are_found(tmp_path: Path) -> None:
    finished(tmp_path / "alone", NOW)
    for trial in ("lr-1", "lr-2"):
        finished(tmp_path / "sweep" / trial, NOW)
    (tmp_path / "sweep" / "sweep.json").write_text('{"trials": ["lr-1", "lr-2", "lr-3"]}')
    (tmp_path / "sweep" / "result.json").write_text("{}")
    finished(tmp_path / "team" / "person" / "deep", NOW)
    finished(tmp_path / ".hidden", NOW)
    finished(tmp_path / "dataset" / "train", NOW)
    (tmp_path / "dataset" / "manifest.json").write_text("{}")
    (tmp_path / "started" / "init").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    names = [found.name for found in find_runs(tmp_path)]
    assert names == ["alone", "started", "sweep/lr-1", "sweep/lr-2", "team/person/deep"]
    assert [found.name for found in find_runs(tmp_path / "alone")] == ["alone"]
    assert find_runs(tmp_path / "nowhere") == []


def test_looking_changes_nothing(tmp_path: Path) -> None:
    run = died(tmp_path / "run", NOW)

    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}

    before = stamps()
    reader = RunReader(run)
    reader.read()
    look(run)
    assert stamps() == before


def test_a_long_journal_is_read_from_its_end_and_then_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = journal_path(tmp_path)
    journal = Journal(path)

    def add(step: int) -> None:
        journal.append(MetricsRecord(time=int(NOW * 1000) + step, step=step, values={"train/loss": 1.0}))

    for step in range(5000):
        add(step)
    read: list[tuple[int, int]] = []
    plain = run_reader.read_chunk

    def noted(*given: Any) -> Any:
        chunk = plain(*given)
        read.append((given[1], chunk.end))
        return chunk

    monkeypatch.setattr(run_reader, "read_chunk", noted)
    end = JournalEnd(path, max_bytes=1 << 14)
    end.read()
    size = path.stat().st_size
    assert size > 20 << 14 and read[0][0] >= size - (1 << 14) and read[-1][1] == size
    assert end.training[-1].step == 4999 and end.damaged == 0
    read.clear()
    end.read()
    assert read == []
    add(5000)
    end.read()
    assert read == [(size, path.stat().st_size)] and end.training[-1].step == 5000
    with path.open("ab") as file:
        file.write(b'{"kind": "metr')
    end.read()
    assert end.training[-1].step == 5000 and end.damaged == 0
    os.truncate(path, 0)
    add(1)
    end.read()
    assert [record.step for record in end.training] == [1]


def test_files_are_read_again_only_when_they_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = died(tmp_path / "run", NOW)
    read: list[Path] = []
    for name in ("read_events", "read_evaluations", "read_log"):
        plain = getattr(run_reader, name)
        monkeypatch.setattr(run_reader, name, lambda path, plain=plain: (read.append(path), plain(path))[1])
    reader = RunReader(run)
    assert len(read) == 3
    reader.read()
    assert len(read) == 3
    RunEvents(run / "events.jsonl").append("driver_started", time=NOW + 9)
    reader.read()
    assert read[3:] == [run / "events.jsonl"] and reader.events[-1]["time"] == NOW + 9


ROWS = [
    RunOverview(name="a-run-with-quite-a-long-name-2026-11", place="", state="running", step=4812, steps=12500,
                left_s=8040.0, metric="top1", best=61.2, goodput=0.913, workers=16, seen=NOW - 3),
    RunOverview(name="b", place="", state="died", note="hardware: a node was lost and with it all that it had",
                step=7, metric="miou", seen=NOW - 7000),
    RunOverview(name="c", place="", state="hidden", note="Permission denied"),
]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_a_table_fits_its_terminal(width: int) -> None:
    lines = table_lines(ROWS, NOW, width)
    assert max(map(len, lines)) <= width
    assert lines[0].split()[:2] == ["run", "state"]
    assert any(line.startswith("a-run-with-quite") and "running" in line for line in lines)
    assert any("hardware: a node" in line for line in lines)


def test_a_wide_table_has_it_all_and_a_narrow_one_the_essence() -> None:
    wide = table_lines(ROWS, NOW, None)
    assert re.sub(" +", " ", wide[1]) == (
        "a-run-with-quite-a-long-name-2026-11 running 4,812/12,500 2h14m top1 61.20 % 91.3 % 16 3s ago"
    )
    assert wide[2].endswith("1h57m ago  hardware: a node was lost and with it all that it had")
    assert len(wide) == 4
    assert table_lines(ROWS, NOW, 60)[0].split() == ["run", "state", "step", "seen"]


def test_colours_are_of_the_states_alone() -> None:
    plain, coloured = table_lines(ROWS, NOW, 80), table_lines(ROWS, NOW, 80, coloured=True)
    assert "\x1b[32mrunning\x1b[0m" in coloured[1]
    assert [line.replace("\x1b[32m", "").replace("\x1b[31m", "").replace("\x1b[35m", "").replace("\x1b[0m", "")
            for line in coloured] == plain  # fmt: skip


def test_the_newest_sign_comes_first() -> None:
    assert [row.name for row in newest_first([ROWS[2], ROWS[1], ROWS[0]])] == [ROWS[0].name, "b", "c"]
