"""The heartbeat file: never torn, never waited for, and what it says of a rank's place and pace."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convmlp_platform.health.heartbeat.heartbeat import NOTE_BYTES, BeatState, HeartbeatWriter, read_heartbeat
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock


def test_what_is_written_is_read(tmp_path: Path) -> None:
    clock = PhaseClock(HeartbeatWriter(tmp_path / "beat", 3, 8))
    first = read_heartbeat(tmp_path / "beat")
    assert first is not None and (first.phase, first.beats, first.median_step_s) == (Phase.START, 1, None)
    clock.bear(180.0)
    clock.enter(Phase.DATA, step=12, note="train-000017.tar, träin-000018.tar")
    beat = read_heartbeat(tmp_path / "beat")
    assert beat is not None
    assert (beat.rank, beat.world_size, beat.pid) == (3, 8, os.getpid())
    assert (beat.phase, beat.step, beat.note) == (Phase.DATA, 12, "train-000017.tar, träin-000018.tar")
    assert beat.patience_s == 180.0 and beat.beats == 3 and 0.0 <= beat.stalled_s <= beat.running_s
    assert pickle.loads(pickle.dumps(beat)) == beat


@given(st.text(max_size=300))
@settings(max_examples=60, deadline=None)
def test_a_long_note_is_cut_between_two_characters(
    tmp_path_factory: pytest.TempPathFactory, note: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "note"
    writer = HeartbeatWriter(path, 0, 1)
    writer.beat(Phase.DATA, 0, 0, note)
    beat = read_heartbeat(path)
    assert beat is not None and note.startswith(beat.note)
    assert beat.note == note or len(beat.note.encode()) > NOTE_BYTES - 4


def test_what_is_no_heartbeat_is_none(tmp_path: Path) -> None:
    assert read_heartbeat(tmp_path / "beat") is None
    writer = HeartbeatWriter(tmp_path / "beat", 0, 1)
    whole = (tmp_path / "beat").read_bytes()
    for content in (b"", whole[:100], b"x" * len(whole), bytes(len(whole)), whole + b"x"):
        (tmp_path / "other").write_bytes(content)
        assert read_heartbeat(tmp_path / "other") is None
    assert writer.path.exists() and len(list(tmp_path.iterdir())) == 2, "no temporary file is left"


@pytest.mark.parametrize("beats", range(1, 5))
def test_a_write_cut_short_anywhere_leaves_the_beat_before(tmp_path: Path, beats: int) -> None:
    """A process stopped or killed within a write has changed any part of one record."""
    chance, path = random.Random(beats), tmp_path / "beat"
    writer = HeartbeatWriter(path, 0, 1)
    for step in range(beats):
        writer.beat(Phase.DATA, step, 0, f"note {step}")
    before = path.read_bytes()
    writer.beat(Phase.COMPUTE, 999, 7, "the next")
    after = path.read_bytes()
    changed = [place for place, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    for _ in range(100):
        written = set(chance.sample(changed, chance.randrange(len(changed))))
        torn = bytes(after[place] if place in written else byte for place, byte in enumerate(before))
        (tmp_path / "cut").write_bytes(torn)
        beat = read_heartbeat(tmp_path / "cut")
        assert beat is not None and (beat.step, beat.note) == (beats - 1, f"note {beats - 1}")


def test_a_reader_beside_a_writer_sees_whole_beats_in_order(tmp_path: Path) -> None:
    writer, enough = HeartbeatWriter(tmp_path / "beat", 0, 1), threading.Event()

    def write() -> None:
        step = 0
        while not enough.is_set():
            writer.beat(Phase.DATA, step, -step, f"note {step}")
            step += 1

    thread = threading.Thread(target=write)
    thread.start()
    last, seen = 0, 0
    try:
        while seen < 100:
            beat = read_heartbeat(tmp_path / "beat")
            if beat is not None and beat.beats > max(1, last):
                assert beat.micro_batch == -beat.step and beat.note == f"note {beat.step}"
                last, seen = beat.beats, seen + 1
            elif beat is not None:
                assert beat.beats >= last
    finally:
        enough.set()
        thread.join()


def test_a_full_disk_or_a_missing_folder_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HeartbeatWriter(tmp_path / "missing" / "beat", 0, 1)


@given(st.lists(st.floats(0.001, 1000.0), min_size=4, max_size=200))
def test_the_median_is_that_of_the_last_steps_without_the_first(seconds: list[float]) -> None:
    state = BeatState(0.0)
    for step, taken in enumerate(seconds):
        state.beat(float(step), Phase.DATA, step, 0)
        state.step_done(step + 0.5, step + 1, taken)
    recent = sorted(seconds[1:][-51:])
    assert state.median_s == recent[len(recent) // 2]
    assert state.first_step_s == 0.5


def test_gaps_of_an_evaluation_are_remembered_until_the_next_but_one() -> None:
    state, now = BeatState(0.0), 0.0
    for gaps in ([1.0, 5.0, 1.0], [2.0, 2.0]):
        state.beat(now, Phase.EVALUATE, 1, 0)
        for gap in gaps:
            now += gap
            state.beat(now, Phase.EVALUATE, 1, 0)
        state.beat(now, Phase.UPDATE, 1, 0)
        assert state.longest_gap_s == 5.0
    state.beat(now, Phase.EVALUATE, 1, 0)
    assert state.longest_gap_s == 2.0


def test_progress_grows_through_a_step_an_evaluation_and_a_rollback() -> None:
    state = BeatState(0.0)
    clock = PhaseClock(_Direct(state))
    seen = [state.progress]

    def note() -> None:
        assert state.progress > seen[-1]
        seen.append(state.progress)

    for step in (7, 8, 3):  # the last after going back
        clock.enter(Phase.DATA, step=step)
        note()
        clock.enter(Phase.COMPUTE)
        note()
        clock.progress()
        note()
        clock.enter(Phase.UPDATE)
        note()
        clock.step_done(step + 1, 0.1)
        note()
        with clock.during(Phase.EVALUATE):
            note()
            clock.progress()
            note()
        note()


def test_a_rank_that_saves_within_an_update_is_no_further_than_one_that_has_nothing_to_save() -> None:
    """Under DDP only rank 0 saves; the others may wait for it in the same update."""
    saving, other = BeatState(0.0), BeatState(0.0)
    clocks = [PhaseClock(_Direct(saving)), PhaseClock(_Direct(other))]
    for step in range(3):
        # The first step is one phase, the others are several: a rank may save in any of them, and after them.
        for phase in [Phase.DATA, Phase.COMPILE] if step == 0 else [Phase.DATA, Phase.COMPUTE, Phase.UPDATE]:
            for clock in clocks:
                clock.enter(phase, step=step)
            with clocks[0].during(Phase.CHECKPOINT):
                assert saving.progress < other.progress
            assert saving.progress == other.progress
        for clock in clocks:
            clock.step_done(step + 1, 0.1)
        with clocks[0].during(Phase.CHECKPOINT):
            assert saving.progress < other.progress
        assert saving.progress == other.progress


class _Direct:
    """Beats at once into a state, at time 0."""

    def __init__(self, state: BeatState) -> None:
        self.state = state

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None:
        self.state.beat(0.0, phase, step, micro_batch)

    def step_done(self, step: int, seconds: float) -> None:
        self.state.step_done(0.0, step, seconds)

    def bear(self, seconds: float) -> None:
        self.state.patience_s = seconds


def test_the_agent_imports_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, convmlp_platform.health.hangs.hang_watch, convmlp_platform.health.hangs.stacks;"
        "import convmlp_platform.health.heartbeat.phases;"
        "print({'torch', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": path}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert told.stdout.strip() == "set()", told.stderr
