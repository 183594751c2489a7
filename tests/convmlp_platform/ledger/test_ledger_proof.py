"""What the checker of ledgers accepts, and above all what it doesn't."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_runs import MadeUpRun, reforge

from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.errors import DataError
from convmlp_platform.ledger.ledger import LedgerWriter, claim_attempt
from convmlp_platform.ledger.ledger_reader import read_file
from convmlp_platform.ledger.proof import check_ledger


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Some thousand small files: whether they survive a power cut doesn't matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MadeUpRun(tmp_path_factory.mktemp("sound") / "run").with_restarts().path


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    """A copy to tamper with."""
    return Path(shutil.copytree(sound, tmp_path / "run"))


def file(run: Path, attempt: int, rank: int) -> Path:
    (found,) = (run / "ledger" / f"attempt-{attempt:06d}").glob(f"rank-{rank:05d}-of-*.ledger")
    return found


def problems(run: Path) -> dict[str, int]:
    """Kinds of problems the checker finds; the verdict must say so too."""
    report = check_ledger(run)
    assert report.ok == (not report.findings.counts) == report.lines()[-1].startswith("proven")
    return report.findings.counts


def test_a_run_with_restarts_is_proven(sound: Path) -> None:
    report = check_ledger(sound)
    assert report.ok, report.lines()
    assert (report.steps, report.samples, report.complete_epochs) == (20, 320, 3)
    assert report.epochs == {0: 97, 1: 97, 2: 97, 3: 29}
    assert [(s.attempt, s.start, s.stop, s.world_size) for s in report.spans] == [
        (1, 0, 6, 3), (2, 6, 12, 2), (3, 12, 20, 5)
    ]  # fmt: skip
    # Rolled back: ranks 0, 1, 2 of the first attempt recorded 3, 2, 4 steps of 2, 3, 3 micro-batches too many.
    assert report.void_samples == 2 * (3 * 2 + 2 * 3 + 4 * 3) + 2 * 16
    assert report.lines()[-1] == "proven up to step 20: each sample exactly once an epoch, in its place"
    assert any("payload checksums were not compared" in line for line in report.lines())


def test_a_restart_from_an_older_checkpoint_voids_what_came_between(tmp_path: Path) -> None:
    """The newest checkpoint was damaged: the third attempt goes on from the first one's."""
    run = MadeUpRun(tmp_path / "run")
    run.attempt(2, 0, 5)
    run.attempt(3, 4, 12, parent=1)
    run.checkpoint(10, 2)
    run.attempt(4, 2, 9, parent=1)
    report = check_ledger(run.path)
    assert report.ok and report.steps == 9
    assert [(s.attempt, s.start, s.stop) for s in report.spans] == [(1, 0, 2), (3, 2, 9)]


def test_two_starts_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    assert [claim_attempt(tmp_path / "ledger") for _ in range(3)] == [1, 2, 3]


def test_a_start_that_died_before_its_first_file_is_no_gap(tmp_path: Path) -> None:
    run = MadeUpRun(tmp_path / "run")
    run.attempt(2, 0, 5)
    claim_attempt(run.ledger)
    run.attempt(2, 3, 8, parent=1)
    report = check_ledger(run.path)
    assert report.ok and report.attempts == 2


def test_the_proof_ends_where_the_slowest_rank_does(tmp_path: Path) -> None:
    run = MadeUpRun(tmp_path / "run")
    run.attempt(3, 0, [9, 7, 8])
    assert check_ledger(run.path).steps == 7


@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 6), st.integers(1, 8)), max_size=6),
)
@settings(max_examples=25)
def test_any_line_of_restarts_is_proven(
    tmp_path_factory: pytest.TempPathFactory, first: int, restarts: list[tuple[int, int, int]]
) -> None:
    """Each restart: a world size, how many steps are rolled back, and how many are done."""
    run = MadeUpRun(tmp_path_factory.mktemp("runs") / "run")
    number = run.attempt(first, 0, 3)
    lines = [[(number, 0, 3)]]
    for world_size, back, done in restarts:
        line = lines[-1]
        start = max(0, line[-1][2] - back)
        parents = [n for n, begin, stop in line if begin <= start <= stop] if start else [0]
        number = run.attempt(world_size, start, start + done, parent=parents[0])
        kept = [(n, b, start) for n, b, s in line if n == parents[0]]
        lines.append([*line[: [n for n, _, _ in line].index(parents[0])], *kept] if start else [])
        lines[-1].append((number, start, start + done))
    report = check_ledger(run.path)
    assert report.ok, report.lines()
    assert [(s.attempt, s.start, s.stop) for s in report.spans] == lines[-1]


# Tampering: records that are wrong, though none of their frames is damaged.


def duplicate_sample(frames: np.ndarray[Any, Any]) -> None:
    frames["samples"][1, 0, 0] = frames["samples"][0, 0, 0]


def swap_samples(frames: np.ndarray[Any, Any]) -> None:
    frames["samples"][2, 0] = frames["samples"][2, 0, ::-1].copy()


def swap_steps(frames: np.ndarray[Any, Any]) -> None:
    frames["samples"][[1, 2]] = frames["samples"][[2, 1]]


def repeat_frame(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([frames, frames[2:3]])


def drop_frame(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.delete(frames, 2)


def unknown_sample(frames: np.ndarray[Any, Any]) -> None:
    frames["samples"][1, 0, 0] += 1000


def other_epoch(frames: np.ndarray[Any, Any]) -> None:
    frames["samples"][0, 0, 0] ^= np.uint64(1 << 40)


def wrong_number(frames: np.ndarray[Any, Any]) -> None:
    frames["numbers"][1, 0] = 99


def anothers_number(frames: np.ndarray[Any, Any]) -> None:
    frames["numbers"][1, 0] = 7


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (duplicate_sample, {"duplicates", "losses", "samples out of order"}),
        (swap_samples, {"samples out of order"}),
        (swap_steps, {"samples out of order"}),
        (repeat_frame, {"micro-batches recorded twice", "duplicates"}),
        (drop_frame, {"micro-batches not recorded", "losses"}),
        (unknown_sample, {"losses", "samples out of order"}),
        (other_epoch, {"duplicates", "losses", "samples out of order"}),
        (wrong_number, {"micro-batches not recorded", "losses", "samples out of order"}),
        (
            anothers_number,
            {"micro-batches not recorded", "micro-batches recorded twice", "samples out of order"},
        ),
    ],
)
def test_a_wrong_record_is_found(run: Path, change: Callable[..., Any], found: set[str]) -> None:
    reforge(file(run, 1, 0), change)
    assert problems(run).keys() == found


def test_the_count_does_not_rely_on_the_order_function(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order function that repeats a sample, in training and checker alike, is found by counting."""
    honest = SampleOrder.stream_samples

    def repeats(self: SampleOrder, stream: int, start: int, count: int) -> Any:
        epochs, samples = honest(self, stream, start, count)
        return epochs, np.where(samples == 5, 6, samples)

    monkeypatch.setattr(SampleOrder, "stream_samples", repeats)
    order = SampleOrder(97, num_streams=4, seed=8, block=4, window=16)
    wrong = MadeUpRun(run.parent / "wrong", order).with_restarts()
    report = check_ledger(wrong.path)
    assert report.findings.counts == {"duplicates": 3, "losses": 3}
    assert report.findings.shown["losses"][0] == "epoch 0: 1 samples never used, e.g. 5"


def test_repeated_samples_are_proven_use_by_use(tmp_path: Path) -> None:
    """20 steps of 16 are 3.3 epochs of 97: the three that went on at once are complete."""
    order = SampleOrder(97, num_streams=4, seed=7, block=4, window=16, repeats=3)
    run = MadeUpRun(tmp_path / "repeated", order).with_restarts()
    report = check_ledger(run.path)
    assert report.ok and report.complete_epochs == 3
    assert report.lines()[-1].startswith("proven up to step 20: each sample exactly 3 times in 3 epochs")
    reforge(file(run.path, 1, 0), swap_samples)
    assert "samples out of order" in problems(run.path)


def test_problems_are_named_by_step_micro_batch_rank_and_file(run: Path) -> None:
    reforge(file(run, 1, 0), swap_samples)
    reforge(file(run, 2, 1), drop_frame)
    shown = check_ledger(run).findings.shown
    assert shown["samples out of order"][0].startswith("step 2, micro-batch 0, place 0: sample ")
    assert "(attempt-000001/rank-00000-of-00003.ledger): not sample " in shown["samples out of order"][0]
    assert shown["micro-batches not recorded"][0] == (
        "step 8, micro-batch 4: not recorded (attempt 2, rank 1 of 2)"
    )


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_a_missing_attempt_is_found(run: Path, attempt: int) -> None:
    shutil.rmtree(run / "ledger" / f"attempt-{attempt:06d}")
    assert "the line of attempts" in problems(run)


@pytest.mark.parametrize(("attempt", "rank"), [(1, 2), (2, 0), (3, 4)])
def test_a_missing_rank_file_is_found(run: Path, attempt: int, rank: int) -> None:
    file(run, attempt, rank).unlink()
    assert "the line of attempts" in problems(run)


@pytest.mark.parametrize(("attempt", "rank", "lost"), [(1, 1, 3), (2, 0, 3), (3, 4, 1)])
def test_a_file_that_was_cut_is_found(run: Path, attempt: int, rank: int, lost: int) -> None:
    path = file(run, attempt, rank)
    size = read_file(path).frames.dtype.itemsize
    path.write_bytes(path.read_bytes()[: -lost * size - 3])
    assert problems(run)


def test_bytes_cut_out_of_the_middle_are_found(run: Path) -> None:
    path = file(run, 2, 1)
    content = path.read_bytes()
    middle = content.index(b"\n") + 3 * read_file(path).frames.dtype.itemsize
    path.write_bytes(content[:middle] + content[middle + 10 :])
    assert problems(run)


def test_a_frame_of_another_file_is_damage(run: Path) -> None:
    """Two files with the same layout: the hash is seeded with the header's."""
    one, other = file(run, 2, 0), file(run, 2, 1)
    size = read_file(one).frames.dtype.itemsize
    content, place = bytearray(one.read_bytes()), -3 * size
    content[place : place + size] = other.read_bytes()[place : place + size]
    one.write_bytes(content)
    assert "damaged frames" in problems(run)


@given(st.data())
@settings(max_examples=150)
def test_every_flipped_bit_on_the_surviving_line_is_found(sound: Path, data: st.DataObject) -> None:
    """In the header: refused. In a frame that counts: a problem. In a frame that is void: harmless."""
    attempt = data.draw(st.integers(1, 3))
    rank = data.draw(st.integers(0, {1: 3, 2: 2, 3: 5}[attempt] - 1))
    path = file(sound, attempt, rank)
    before = path.read_bytes()
    layout, line = read_file(path).frames.dtype, before.index(b"\n") + 1
    place = data.draw(st.integers(0, len(before) * 8 - 1))
    counts = (place // 8 - line) // layout.itemsize < {1: 6, 2: 6, 3: 8}[attempt]
    content = bytearray(before)
    content[place // 8] ^= 1 << place % 8
    try:
        path.write_bytes(content)
        if place // 8 < line:
            with pytest.raises(DataError):
                check_ledger(sound)
        else:
            assert bool(problems(sound)) == counts
    finally:
        path.write_bytes(before)


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_a_torn_end_is_dropped_and_never_mistaken(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Cut anywhere after the header: what was whole counts, what follows doesn't, and nothing is wrong."""
    run = MadeUpRun(tmp_path_factory.mktemp("torn") / "run")
    run.attempt(2, 0, 9)
    path = file(run.path, 1, 1)
    content, frame = path.read_bytes(), read_file(path).frames.dtype.itemsize
    start = content.index(b"\n") + 1
    kept = frame + cut % (len(content) - start - frame)
    path.write_bytes(content[: start + kept])
    report = check_ledger(run.path)
    assert report.ok, report.lines()
    assert report.steps == kept // frame
    assert report.torn_files == bool(kept % frame)


def test_no_record_proves_nothing(tmp_path: Path, run: Path) -> None:
    with pytest.raises(DataError, match=r"no ledger in .* nothing can be proven"):
        check_ledger(tmp_path)
    empty = MadeUpRun(tmp_path / "empty")
    claim_attempt(empty.ledger)
    with pytest.raises(DataError, match="no ledger in"):
        check_ledger(empty.path)
    empty.attempt(2, 0, 0)
    with pytest.raises(DataError, match="no step that every rank recorded"):
        check_ledger(empty.path)
    empty.attempt(2, 0, [3, 0])
    with pytest.raises(DataError, match="no step that every rank recorded"):
        check_ledger(empty.path)


def test_a_ledger_of_another_run_is_refused(run: Path) -> None:
    fields = json.loads((run / "run.json").read_text())["identity_fields"]
    (run / "run.json").write_text(json.dumps({"identity_fields": {**fields, "optimizer.lr": 1}}))
    with pytest.raises(DataError, match="attempt 1 is of another run: identity is"):
        check_ledger(run)
    (run / "run.json").write_text(json.dumps({"identity_fields": {**fields, "data.order": 1}}))
    with pytest.raises(DataError, match="order version 1"):
        check_ledger(run)
    (run / "run.json").unlink()
    with pytest.raises(DataError, match=r"run\.json can't be read"):
        check_ledger(run)


def test_files_that_were_moved_or_contradict_each_other_are_refused(run: Path) -> None:
    shutil.copy(file(run, 3, 1), file(run, 3, 0))
    with pytest.raises(DataError, match="it was moved"):
        check_ledger(run)
    shutil.rmtree(run / "ledger" / "attempt-000003")
    again = MadeUpRun(run)
    LedgerWriter(again.ledger, again.header(0, 5, 3, 2, 12)).close()
    LedgerWriter(again.ledger, again.header(1, 5, 3, 2, 13)).close()
    with pytest.raises(DataError, match="contradicts"):
        check_ledger(run)


def test_places_left_out_are_listed_and_count_as_used(tmp_path: Path) -> None:
    run = MadeUpRun(tmp_path / "run")
    writer = LedgerWriter(run.ledger, run.header(0, 1, claim_attempt(run.ledger), 0, 0))
    for step in range(7):
        used = run.used(step, 0, 1)
        if step == 3:
            used[2].replaced[1] = True
            used[2].checksums[1] = 0
        writer.append(step, used)
    report = check_ledger(run.path)
    assert report.ok and report.epochs[0] == 97 and report.num_left_out == 1
    sample = int(run.used(3, 0, 1)[2].sample_ids[1])
    assert report.left_out[0].startswith(f"step 3, micro-batch 2, place 1: sample {sample} of epoch 0 (")


def test_a_sample_costs_at_most_16_bytes(tmp_path: Path) -> None:
    """12 + (16 + 4 M) / (M B), for micro-batches of 8 and more."""
    for size, micros in ((8, 1), (8, 4), (32, 4), (64, 1)):
        order = SampleOrder(10_000, num_streams=1, seed=0)
        run = MadeUpRun(tmp_path / f"{size}-{micros}", order, size * micros, size)
        run.attempt(1, 0, 50)
        path = file(run.path, 1, 0)
        content = path.read_bytes()
        frames = len(content) - content.index(b"\n") - 1
        assert frames / (50 * size * micros) == 12 + (16 + 4 * micros) / (micros * size) <= 16


def test_micro_batches_of_another_size_are_refused(tmp_path: Path) -> None:
    run = MadeUpRun(tmp_path / "run")
    writer = LedgerWriter(run.ledger, run.header(0, 2, 1, 0, 0))
    with pytest.raises(ValueError, match="not 4 micro-batches of 2 samples"):
        writer.append(0, run.used(0, 0, 2)[:3])


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = MadeUpRun(tmp_path / "run")
    writer = LedgerWriter(run.ledger, run.header(0, 2, 1, 0, 0))
    monkeypatch.setattr(writer, "_descriptor", os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(
        DataError, match=r"can't write the ledger .*rank-00000-of-00002\.ledger: No space left"
    ):
        writer.append(0, run.used(0, 0, 2))


def test_ghosts_are_not_recorded(tmp_path: Path) -> None:
    run = MadeUpRun(tmp_path / "run")
    assert any(used.ghost for used in run.used(0, 0, 3))
    run.attempt(3, 0, 5)
    report = check_ledger(run.path)
    assert report.ok and report.samples == 5 * 16
