"""A process that was taken for dead must not write over what its successor does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from saved import save_now

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer
from convmlp_platform.checkpoints.layout import step_name
from convmlp_platform.checkpoints.stores.store import CheckpointDraft, Chunks
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.errors import SupersededError
from convmlp_platform.ledger.ledger import LedgerHeader, LedgerWriter, claim_attempt
from convmlp_platform.training.saving import check_newest


def record(ledger: Path) -> LedgerWriter:
    attempt = claim_attempt(ledger)
    order = SampleOrder(64, 2, 5, 8, 16)
    return LedgerWriter(ledger, LedgerHeader("id", "sha", "train", "webdataset", order, 8, 4, 1, 0, attempt))


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"model": {"w": torch.full((3,), float(step))}}, {"step": step})


def test_an_older_attempt_commits_nothing_once_a_newer_one_has_begun(tmp_path: Path) -> None:
    ledger, folder = tmp_path / "ledger", tmp_path / "checkpoints"
    old = record(ledger)
    zombie = AsyncCheckpointer(
        Checkpointer(folder), session="attempt-1", may_commit=lambda: check_newest(old)
    )
    zombie.save(checkpoint(1))
    assert zombie.wait() == str(folder / "step-000000001")
    new = record(ledger)
    successor = AsyncCheckpointer(
        Checkpointer(folder), session="attempt-2", may_commit=lambda: check_newest(new)
    )
    zombie.save(checkpoint(2))
    with pytest.raises(SupersededError, match="attempt 1 at the run, and attempt 2 has begun since"):
        zombie.wait()
    with pytest.raises(SupersededError):
        zombie.save(checkpoint(3))
    successor.save(checkpoint(3))
    successor.close()
    assert Checkpointer(folder).store.steps() == [1, 3]


def test_it_is_asked_again_right_before_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor begins while the zombie writes."""
    ledger, checkpointer = tmp_path / "ledger", Checkpointer(tmp_path / "checkpoints")
    old = record(ledger)
    begin = checkpointer.store.draft

    def draft(*args: Any) -> CheckpointDraft:
        claim_attempt(ledger)
        return begin(*args)

    monkeypatch.setattr(checkpointer.store, "draft", draft)
    files: dict[str, Chunks] = {"model.tensors": lambda: [b"weights"]}
    with pytest.raises(SupersededError):
        checkpointer.write(7, {}, files, may_commit=lambda: check_newest(old))
    assert checkpointer.store.steps() == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == []


def test_the_newest_checkpoint_up_to_a_step(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=9)
    for step in (2, 4, 6):
        save_now(checkpointer, checkpoint(step))
    found = [checkpointer.newest(up_to) for up_to in (1, 2, 5, 6, None)]
    names = [None if location is None else Path(location).name for location in found]
    assert names == [None, *(step_name(step) for step in (2, 4, 6, 6))]
