"""Training doesn't wait for storage, and hears of what storage does."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.layout import Part
from convmlp_platform.checkpoints.tensor_file import TensorSlice
from convmlp_platform.errors import CheckpointError


def state(step: int) -> Checkpoint:
    return Checkpoint(step, {"model": {"w": torch.full((300,), float(step))}}, {"samples_seen": step})


class Storage:
    """Stands before a store's drafts: holds writes back until told, or refuses them."""

    def __init__(self, checkpointer: Checkpointer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        self.refusals: list[OSError] = []
        self.open.set()
        real = checkpointer.store.draft

        def draft(*args: Any) -> Any:
            self.reached.set()
            assert self.open.wait(60)
            if self.refusals:
                raise self.refusals.pop(0)
            return real(*args)

        monkeypatch.setattr(checkpointer.store, "draft", draft)


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[AsyncCheckpointer]:
    saver = AsyncCheckpointer(Checkpointer(tmp_path / "checkpoints"), first_pause=0.01, longest_pause=0.05)
    yield saver
    saver.close()


@pytest.fixture
def storage(saver: AsyncCheckpointer, monkeypatch: pytest.MonkeyPatch) -> Storage:
    return Storage(saver.checkpointer, monkeypatch)


def step_of(saver: AsyncCheckpointer) -> int:
    newest = saver.checkpointer.newest()
    assert newest is not None
    found = load(newest)
    assert torch.equal(found.tensors["model"]["w"], torch.full((300,), float(found.step)))
    return found.step


def test_a_step_goes_on_with_its_weights_while_they_are_written(
    saver: AsyncCheckpointer, storage: Storage
) -> None:
    storage.open.clear()
    weights = torch.full((300,), 1.0)
    saver.save(Checkpoint(1, {"model": {"w": weights}}, {}))
    assert storage.reached.wait(60)
    weights += 5
    assert saver.state == "writing"
    storage.open.set()
    assert saver.wait(60) == saver.checkpointer.store.location(1)
    assert step_of(saver) == 1
    assert [(event.kind, event.step) for event in saver.poll()] == [("committed", 1)]
    assert saver.poll() == []


def test_a_save_waits_for_the_one_that_is_being_written(saver: AsyncCheckpointer, storage: Storage) -> None:
    storage.open.clear()
    saver.save(state(1))
    threading.Timer(0.05, storage.open.set).start()
    saver.save(state(3))
    saver.wait(60)
    assert saver.checkpointer.store.steps() == [1, 3]
    assert [(e.kind, e.step) for e in saver.poll()] == [("committed", 1), ("committed", 3)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_refusal_is_told_and_tried_again(saver: AsyncCheckpointer, storage: Storage, code: int) -> None:
    saver.save(state(1))
    saver.wait(60)
    storage.refusals = [OSError(code, "the storage refused")] * 3
    saver.save(state(2))
    saver.wait(60)
    events = saver.poll()
    assert [event.kind for event in events] == ["committed", "failed", "failed", "failed", "committed"]
    assert "the storage refused; training goes on, next try in 0.01 s" in events[1].message
    assert (step_of(saver), saver.failures) == (2, 3)


def test_a_newer_save_takes_the_place_of_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = AsyncCheckpointer(Checkpointer(tmp_path / "checkpoints"), first_pause=1000.0)
    storage = Storage(saver.checkpointer, monkeypatch)
    storage.refusals = [OSError(errno.ENOSPC, "the disk is full")]
    saver.save(state(1))
    with pytest.raises(
        CheckpointError, match=r"isn't committed after 0.2 s: can't write .* the disk is full"
    ):
        saver.wait(0.2)
    saver.save(state(2))
    saver.close()
    assert saver.checkpointer.store.steps() == [2]


def test_closing_gives_up_what_cannot_be_written(saver: AsyncCheckpointer, storage: Storage) -> None:
    saver.save(state(1))
    saver.wait(60)
    storage.refusals = [OSError(errno.EROFS, "Read-only file system")] * 10_000
    saver.save(state(2))
    with pytest.raises(CheckpointError, match="Read-only file system"):
        saver.close(0.2)
    assert step_of(saver) == 1
    with pytest.raises(CheckpointError, match="closed"):
        saver.save(state(3))
    storage.refusals.clear()
    saver._job = None  # so that the fixture's close finds nothing to wait for


def test_a_fault_of_ours_is_raised_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = AsyncCheckpointer(Checkpointer(tmp_path))

    def broken(*_: object, **__: object) -> str:
        raise TypeError("a bug")

    monkeypatch.setattr(saver.checkpointer, "write", broken)
    saver.save(state(1))
    with pytest.raises(TypeError, match="a bug"):
        saver.wait(60)
    with pytest.raises(TypeError, match="a bug"):
        saver.save(state(2))


def test_memory_is_reserved_ahead(saver: AsyncCheckpointer) -> None:
    saver.reserve(state(1))
    memory = saver._snapshots._memory["model"].data_ptr()
    saver.save(state(1))
    assert saver._snapshots._memory["model"].data_ptr() == memory


def in_parts(tmp_path: Path, count: int, action: Callable[[list[AsyncCheckpointer]], None]) -> None:
    folder = tmp_path / "checkpoints"
    savers = [
        AsyncCheckpointer(Checkpointer(folder), part=Part(i, count), session="a1") for i in range(count)
    ]
    action(savers)
    for saver in savers:
        saver.close()


def part_of(step: int, number: int, count: int) -> Checkpoint:
    """A rank's share of 12 numbers; the first rank alone has the facts and a whole tensor."""
    size = 12 // count
    run = torch.arange(12.0)[number * size : (number + 1) * size] + step
    tensors = {"w": run} | ({"whole": torch.ones(3)} if number == 0 else {})
    return Checkpoint(step, {"model": tensors}, {}, {"model": {"w": TensorSlice((3, 4), number * size)}})


@pytest.mark.parametrize("count", [2, 3, 4])
def test_ranks_write_their_own_parts_and_the_first_commits(tmp_path: Path, count: int) -> None:
    def action(savers: list[AsyncCheckpointer]) -> None:
        for step in (1, 2, 3, 4):
            for number, saver in reversed(list(enumerate(savers))):
                saver.save(part_of(step, number, count))
            savers[0].wait(60)

    in_parts(tmp_path, count, action)
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    assert checkpointer.store.steps() == [2, 3, 4]
    newest = checkpointer.newest()
    assert newest is not None
    assert torch.equal(load(newest).tensors["model"]["w"], torch.arange(12.0).view(3, 4) + 4)
    names = sorted(path.name for path in Path(newest).iterdir())
    assert names == [
        "manifest.json",
        *(f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)),
        "state.json",
    ]


def test_a_part_that_never_comes_commits_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    def action(savers: list[AsyncCheckpointer]) -> None:
        savers[0].save(part_of(1, 0, 2))
        with pytest.raises(CheckpointError, match="isn't committed"):
            savers[0].wait(0.2)
        for number, saver in enumerate(savers):
            if number == 1:
                saver._saves = 1  # it took part in the first, and died before it wrote
            saver.save(part_of(2, number, 2))

    in_parts(tmp_path, 2, action)
    assert Checkpointer(tmp_path / "checkpoints").store.steps() == [2]
