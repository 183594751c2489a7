"""One fault of one operation costs no checkpoint, and a writer that was taken for dead takes none."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
import torch
from fault_matrix import FAULTS, Fault, Point, Storage, fail_everywhere, fail_everywhere_on_ranks, impatient
from ranks import run_ranks

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.layout import Part
from convmlp_platform.checkpoints.tensor_file import TensorSlice
from convmlp_platform.errors import SupersededError


def test_a_fault_costs_no_checkpoint(tmp_path: Path) -> None:
    """A thirteenth of the combinations of one writer."""
    counts = fail_everywhere(tmp_path, every=13)
    assert counts["folder, 1"] >= 10 and counts["object store, 1"] >= 4, counts


@pytest.mark.slow
def test_a_fault_of_one_of_two_ranks_costs_no_checkpoint(tmp_path: Path) -> None:
    """On real ranks: a commit that fails after all parts were handed in, and a part that seems not to be."""
    ends = r"(rename|PUT) .*(> step-\d+|manifest.json)|(replace|PUT) .*hand-in"
    counts = run_ranks(fail_everywhere_on_ranks, 2, str(tmp_path), 2, ends)[0]
    assert counts["folder, 2"] >= 4 and counts["object store, 2"] >= 4, counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("writers", [1, 2, 4])
def test_every_fault_at_every_operation(tmp_path: Path, writers: int) -> None:
    """{EIO, ENOSPC, EACCES, EIO with the work done} in a folder, {500, 503, refused, 403, cut} on an object store."""
    counts = (
        fail_everywhere(tmp_path)
        if writers == 1
        else run_ranks(fail_everywhere_on_ranks, writers, str(tmp_path))[0]
    )
    print(f"{sum(counts.values())} combinations: {counts}")
    assert sum(counts.values()) >= {1: 200, 2: 300, 4: 500}[writers]


class Attempt:
    """One attempt at a run: a writer for each of its ranks, in threads of this process."""

    newest = 0

    def __init__(self, place: str, number: int, writers: int) -> None:
        self.number = Attempt.newest = number
        self.writers = [
            AsyncCheckpointer(
                Checkpointer(place, keep=2),
                part=Part(rank, writers),
                session=f"attempt-{number}",
                may_commit=self.may_commit,
                first_pause=0.002,
            )
            for rank in range(writers)
        ]

    def may_commit(self) -> None:
        if Attempt.newest > self.number:
            raise SupersededError(f"attempt {Attempt.newest} has begun")

    def save(self, step: int) -> None:
        count = len(self.writers)
        for rank, writer in enumerate(self.writers):
            run = {"w": torch.tensor([float(step), float(self.number)])}
            slices = {"model": {"w": TensorSlice((2 * count,), 2 * rank)}} if count > 1 else {}
            writer.save(Checkpoint(step, {"model": run}, {"by": self.number}, slices))

    def wait(self) -> None:
        for writer in self.writers:
            writer.wait(60)

    def end(self) -> None:
        """Let every writer find out whether it was superseded; rank 0 of a superseded attempt is never told of the
        parts of one that has given up."""
        for writer in self.writers:
            writer.stop()
            if writer._thread is not None:
                writer._thread.join(60)
                assert not writer._thread.is_alive()


def check(place: str, writers: int) -> dict[int, int]:
    """Which attempt has written each committed step; every one is read whole."""
    checkpointer, found = Checkpointer(place, keep=2), {}
    for step in checkpointer.store.steps():
        checkpointer.verify(step)
        checkpoint = load(checkpointer.store.location(step))
        found[step] = checkpoint.facts["by"]
        wanted = torch.tensor([float(step), float(found[step])] * writers)
        assert torch.equal(checkpoint.tensors["model"]["w"], wanted)
    return found


def wake_up(storage: Storage, kind: str, name: str, writers: int, point: Point, steps: int) -> None:
    """An attempt sticks right before an operation of its save of step 2; its successor commits `steps` steps from 2
    on; then it goes on."""
    reached, wake = threading.Event(), threading.Event()

    def stick(here: Point) -> Fault | None:
        if here == point and not reached.is_set():
            reached.set()
            assert wake.wait(60)
        return None

    place = storage.place(kind, name)
    zombie = Attempt(place, 1, writers)
    zombie.save(1)
    zombie.wait()
    storage.watch(name, stick)
    zombie.save(2)
    assert reached.wait(60), "it didn't come"
    successor = Attempt(place, 2, writers)
    for step in range(2, 2 + steps):
        successor.save(step)
        successor.wait()
    before = check(place, writers)
    wake.set()
    zombie.end()
    storage.watch(name, None)
    after = check(place, writers)
    assert {step: by for step, by in after.items() if step in before} == before
    assert all(after[step] == 2 for step in range(3, 2 + steps) if step in after)
    successor.save(2 + steps)
    successor.wait()
    successor.end()
    assert check(place, writers)[2 + steps] == 2


def wake_up_everywhere(root: Path, kind: str, writers: int, every: int) -> int:
    """A zombie at each operation of a save; how many were tried."""
    storage, points = Storage(root), list[Point]()

    def record(point: Point) -> None:
        if point[2] == 1 or "hand-in" not in point[1] or point[0] not in ("HEAD", "read open"):
            points.append(point)

    with impatient(), storage.watched():
        dry = Attempt(storage.place(kind, "dry"), 1, writers)
        dry.save(1)
        dry.wait()
        storage.watch("dry", record)
        dry.save(2)
        dry.wait()
        dry.end()
        chosen = list(itertools.product(points, (1, 3)))[::every]
        for number, (point, steps) in enumerate(chosen):
            try:
                wake_up(storage, kind, f"run-{number}", writers, point, steps)
            except BaseException as error:
                error.add_note(
                    f"{kind}, {writers} writers, stuck before {point}, {steps} steps of the successor"
                )
                raise
    return len(chosen)


@pytest.mark.parametrize("kind", list(FAULTS))
@pytest.mark.parametrize("writers", [1, 2])
def test_a_superseded_writer_that_wakes_up_takes_nothing(tmp_path: Path, kind: str, writers: int) -> None:
    assert wake_up_everywhere(tmp_path, kind, writers, every=5) >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", list(FAULTS))
@pytest.mark.parametrize("writers", [1, 2, 4])
def test_a_superseded_writer_wakes_up_at_every_operation(tmp_path: Path, kind: str, writers: int) -> None:
    count = wake_up_everywhere(tmp_path, kind, writers, every=1)
    print(f"{count} zombies in a {kind}, {writers} writers")
    assert count >= {"folder": 60, "object store": 20}[kind]
