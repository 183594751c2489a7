"""The saves of a run: put off while storage is slow, waited for at the end, and refused with the storage's cause."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.checkpoints.checkpointer import Checkpointer
from convmlp_platform.checkpoints.stores.local_store import LocalDraft
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.distributed import joined_world
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import OwnState
from convmlp_platform.errors import CheckpointError, SupersededError, cause_of
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.ledger.ledger import LedgerHeader, LedgerWriter, claim_attempt, known_attempts
from convmlp_platform.training import saving
from convmlp_platform.training.saving import Saver
from convmlp_platform.training.step_plan import TrainState


class Run:
    """A run of one rank with a saver and nothing else."""

    def __init__(self, folder: Path, engine: Any, patience_s: float = 120.0) -> None:
        self.folder, self.events = folder, list[SaveEvent]()
        self.saver = Saver(
            Checkpointer(folder / "checkpoints"),
            cast(Engine, engine),
            PhaseClock(),
            lambda state: {},
            self.events.append,
            patience_s,
        )
        order = SampleOrder(64, 2, 5, 8, 16)
        self.record = LedgerWriter(
            folder / "ledger",
            LedgerHeader(
                "id", "sha", "train", "webdataset", order, 8, 4, 1, 0, claim_attempt(folder / "ledger")
            ),
        )
        self.saver.open(self.record)

    def steps(self) -> list[int]:
        return self.saver.checkpointer.store.steps()

    def kinds(self) -> list[tuple[str, int]]:
        return [(event.kind, event.step) for event in self.events]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    with joined_world(use_gpu=False) as world:
        weights = {"w": torch.zeros(3)}
        engine = SimpleNamespace(
            world=world,
            every_rank_writes=False,
            updates=0,
            before_update=None,
            extra_state=dict,
            own_state=lambda: OwnState({"model": weights}, {}, frozenset()),
        )
        yield lambda **named: Run(tmp_path, engine, **named)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The storage takes no file until it is set."""
    event, write = threading.Event(), LocalDraft.write

    def slow(self: LocalDraft, *args: Any) -> Any:
        assert event.wait(60)
        return write(self, *args)

    monkeypatch.setattr(LocalDraft, "write", slow)
    return event


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, "the storage refused")

    monkeypatch.setattr(LocalDraft, "write", refused)


def test_slow_storage_puts_saves_off_but_not_the_last(
    start: Callable[..., Run], gate: threading.Event
) -> None:
    run = start()
    run.saver.save(TrainState(1))
    run.saver.save(TrainState(2))
    assert run.saver.owed
    run.saver.save(TrainState(3))
    threading.Timer(0.1, gate.set).start()
    run.saver.save(TrainState(4), wait=True)
    run.saver.close()
    assert run.steps() == [1, 4]
    assert run.kinds() == [("skipped", 2), ("committed", 1), ("committed", 4)]


def test_the_last_save_may_take_as_long_as_it_takes(start: Callable[..., Run], gate: threading.Event) -> None:
    """Patience is for a storage that refuses; this one is slow."""
    run = start(patience_s=0.05)
    run.saver.save(TrainState(6), wait=True)
    threading.Timer(0.6, gate.set).start()
    run.saver.close()
    assert run.steps() == [6]
    assert run.saver.checkpoint == str(run.folder / "checkpoints" / "step-000000006")


@pytest.mark.parametrize(("code", "cause"), [(errno.ENOSPC, "storage"), (errno.EACCES, "job")])
def test_a_storage_that_goes_on_refusing_ends_the_run_with_its_cause(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, code: int, cause: str
) -> None:
    run = start(patience_s=0.2)
    refuse(monkeypatch, code)
    run.saver.save(TrainState(6), wait=True)
    with pytest.raises(
        CheckpointError, match=r"step-000000006 isn't committed: .* the storage refused"
    ) as caught:
        run.saver.close()
    assert cause_of(caught.value) == cause


def test_a_refusal_that_passes_at_the_end_is_outlasted(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(patience_s=30.0)
    with monkeypatch.context() as refusing:
        refuse(refusing, errno.ENOSPC)
        run.saver.save(TrainState(6), wait=True)
        while run.saver.saves._writer is None or run.saver.saves._writer.state != "refused":
            pass
    run.saver.close()
    assert run.steps() == [6]
    assert [kind for kind, _ in run.kinds()] == ["failed", "committed"]


def test_a_request_to_stop_has_its_grace(start: Callable[..., Run], gate: threading.Event) -> None:
    run = start(patience_s=0.2)
    run.saver.save(TrainState(6), wait=True, on_request=True)
    with pytest.raises(CheckpointError, match=r"0\.2 s \(launch.preemption_grace_s\)") as caught:
        run.saver.close()
    assert cause_of(caught.value) == "storage"
    gate.set()


def test_a_rollback_waits_for_a_save_under_way_and_gives_up_a_refused_one(
    start: Callable[..., Run], gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start()
    run.saver.save(TrainState(3))
    threading.Timer(0.1, gate.set).start()
    run.saver.abandon()
    assert run.steps() == [3]
    run.saver.open(run.record)
    refuse(monkeypatch, errno.EIO)
    run.saver.save(TrainState(4))
    run.saver.abandon()
    assert run.steps() == [3]


def test_an_attempt_that_was_superseded_removes_nothing_and_says_so(start: Callable[..., Run]) -> None:
    run = start()
    for step in (3, 4):
        run.saver.save(TrainState(step), wait=True)
    run.saver.close()
    claim_attempt(run.folder / "ledger")
    with pytest.raises(SupersededError):
        run.saver.discard_after(3)
    assert run.steps() == [3, 4]


def test_what_ends_all_saving_is_raised_at_the_next_step(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start()

    def broken(*_: object, **__: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(run.saver.checkpointer, "write", broken)
    run.saver.save(TrainState(3))
    while run.saver.saves._writer is None or run.saver.saves._writer.state != "failed":
        pass
    with pytest.raises(TypeError, match="a bug"):
        run.saver.poll()


def test_asking_who_is_newest_may_fail_once(
    start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, left = start(), [OSError(errno.EIO, "Input/output error")]

    def known(folder: Path) -> list[int]:
        if left:
            raise left.pop()
        return known_attempts(folder)

    monkeypatch.setattr(saving, "known_attempts", known)
    run.saver.save(TrainState(3))
    run.saver.close()
    assert run.steps() == [3]
    assert [kind for kind, _ in run.kinds()] == ["failed", "committed"]
