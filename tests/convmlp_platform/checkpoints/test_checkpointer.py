"""A checkpoint is committed or does not exist; a damaged one is never loaded."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import save_now

from convmlp_platform.checkpoints import checkpointer as checkpointing
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.layout import manifest_bytes
from convmlp_platform.errors import CheckpointError, cause_of


def checkpoint(step: int) -> Checkpoint:
    tensors = {
        "model": {"w": torch.full((3, 4), float(step))},
        "optimizer": {"w/exp_avg": torch.ones(3, 4) * step},
    }
    return Checkpoint(step, tensors, {"samples_seen": 8 * step})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = Path(save_now(Checkpointer(tmp_path), checkpoint(7)))
    assert Checkpointer(tmp_path).newest() == str(saved)
    assert (tmp_path / "latest").read_text() == saved.name == "step-000000007"
    found = load(saved)
    assert (found.step, found.facts["samples_seen"]) == (7, 56)
    assert torch.equal(found.tensors["model"]["w"], torch.full((3, 4), 7.0))
    assert found.tensors.keys() == {"model", "optimizer"}


def test_old_ones_retire_and_the_newest_stay(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        save_now(checkpointer, checkpoint(step))
    assert Checkpointer(tmp_path).store.steps() == [3, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000000003", "step-000000010"]


def test_fewer_than_two_are_never_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"keep \(=1\)"):
        Checkpointer(tmp_path, keep=1)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    checkpointer = Checkpointer(tmp_path)
    good, bad = (Path(save_now(checkpointer, checkpoint(step))) for step in (1, 2))
    file = bad / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-9])
    else:
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
    assert checkpointer.newest() == str(good)


def test_when_all_are_damaged_it_says_so(tmp_path: Path) -> None:
    saved = Path(save_now(Checkpointer(tmp_path), checkpoint(1)))
    (saved / "state.json").unlink()
    with pytest.raises(CheckpointError, match="all 1 checkpoints"):
        Checkpointer(tmp_path).newest()


@pytest.mark.parametrize(
    ("number", "steps", "newest"),
    [
        (errno.ESTALE, {2}, None),
        (errno.ENOTCONN, {1, 2}, None),
        (errno.EIO, {2}, 1),  # one sector, perhaps
        (errno.EIO, {1, 2}, None),
    ],
)
@pytest.mark.parametrize("operation", ["read", "stream"])
def test_a_storage_that_is_away_damages_no_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    number: int,
    steps: set[int],
    newest: int | None,
) -> None:
    for step in (1, 2):
        save_now(Checkpointer(tmp_path), checkpoint(step))
    checkpointer = Checkpointer(tmp_path)
    whole = getattr(checkpointer.store, operation)

    def fail(step: int, name: str) -> Any:
        if step in steps:
            raise OSError(number, os.strerror(number))
        return whole(step, name)

    monkeypatch.setattr(checkpointer.store, operation, fail)
    if newest is not None:
        assert checkpointer.newest() == checkpointer.store.location(newest)
        return
    with pytest.raises(CheckpointError) as raised:
        checkpointer.newest()
    assert cause_of(raised.value) == "storage"


def test_a_checkpoint_that_can_not_be_loaded_now_is_the_storages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_now(Checkpointer(tmp_path), checkpoint(1))

    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(checkpointing, "read_json", fail)
    with pytest.raises(CheckpointError, match="can't be read: Stale file handle") as raised:
        load(saved)
    assert cause_of(raised.value) == "storage"


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    saved = Path(save_now(Checkpointer(tmp_path), checkpoint(1)))
    (saved / "manifest.json").write_text('{"files": {"../latest": {"bytes": 1, "sha256": ""}}}')
    with pytest.raises(CheckpointError, match="outside"):
        Checkpointer(tmp_path).verify(1)


def test_no_permission_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="can't write checkpoint"):
        save_now(Checkpointer(tmp_path / "runs"), checkpoint(1))


def test_a_damaged_step_is_written_again_and_a_whole_one_is_not(tmp_path: Path) -> None:
    saved = Path(save_now(Checkpointer(tmp_path), checkpoint(1)))
    before = (saved / "model.safetensors").stat().st_ino
    save_now(Checkpointer(tmp_path), checkpoint(1))
    assert (saved / "model.safetensors").stat().st_ino == before
    (saved / "model.safetensors").write_bytes(b"torn")
    save_now(Checkpointer(tmp_path), checkpoint(1))
    assert torch.equal(load(saved).tensors["model"]["w"], torch.full((3, 4), 1.0))


def test_the_newest_two_that_are_whole_never_retire(tmp_path: Path) -> None:
    """Damaged ones count towards `keep`, but not as those two."""
    for step in (1, 2, 3):
        save_now(Checkpointer(tmp_path, keep=3), checkpoint(step))
    for step in (2, 3):
        (tmp_path / f"step-00000000{step}" / "state.json").write_text("{}")
    again = Checkpointer(tmp_path, keep=2)
    save_now(again, checkpoint(4))
    assert again.store.steps() == [1, 2, 3, 4]
    save_now(again, checkpoint(5))
    assert again.store.steps() == [4, 5]


def test_a_writer_that_comes_late_takes_no_committed_steps_place(tmp_path: Path) -> None:
    """Not even where its unfinished folder was never swept."""
    Checkpointer(tmp_path).write(1, {}, {})
    late = Checkpointer(tmp_path).store.draft(2, "attempt-1", 0)
    record = late.write("state.json", lambda: [b"{}"])
    (tmp_path / "step-000000002").mkdir()
    (tmp_path / "step-000000002" / "of-attempt-2").touch()
    with pytest.raises(OSError, match="another writer has committed this step"):
        late.commit(manifest_bytes(2, {"state.json": record}))
    assert [path.name for path in (tmp_path / "step-000000002").iterdir()] == ["of-attempt-2"]


def test_a_rollback_removes_what_came_after(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2, 3):
        save_now(checkpointer, checkpoint(step))
    assert checkpointer.discard_after(1) == [3, 2]
    assert checkpointer.newest() == str(tmp_path / "step-000000001")
    assert (tmp_path / "latest").read_text() == "step-000000001"


def test_a_full_disk_is_told_in_bytes_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(tmp_path)
    save_now(checkpointer, checkpoint(1))
    room, write = 300, os.write

    def full(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(descriptor, data[:room])
        room -= done
        return done

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match=r"disk is full: \d+ of \d+ bytes of .* are missing"):
        save_now(checkpointer, checkpoint(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000000001"]
    assert checkpointer.newest() == str(tmp_path / "step-000000001")


def test_a_save_that_cannot_fit_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"bytes are needed, [\d,]+ of them are missing"):
        Checkpointer(tmp_path).write(1, {}, {}, expected_bytes=1 << 60)
    assert list(tmp_path.iterdir()) == []


def test_a_commit_counts_even_where_tidying_up_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = Checkpointer(tmp_path, keep=2)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpointer.store, "point_at", refuse)
    monkeypatch.setattr(checkpointer.store, "remove", refuse)
    for step in (1, 2, 3):
        save_now(checkpointer, checkpoint(step))
    assert checkpointer.store.steps() == [1, 2, 3]
    assert not (tmp_path / "latest").exists()


@pytest.mark.parametrize("version", [None, 2])
def test_older_manifests_are_read_and_newer_ones_refused(tmp_path: Path, version: int | None) -> None:
    manifest = Path(save_now(Checkpointer(tmp_path), checkpoint(1)), "manifest.json")
    fields = json.loads(manifest.read_text())
    older = {"schema_version": version} if version else {}
    manifest.write_text(json.dumps(older | {"step": 1, "files": fields["files"]}))
    assert Checkpointer(tmp_path).newest() == str(manifest.parent)
    manifest.write_text(json.dumps(fields | {"schema_version": 4}))
    with pytest.raises(CheckpointError, match="use the version that wrote it"):
        Checkpointer(tmp_path).verify(1)


def test_a_manifest_that_lost_a_file_is_noticed(tmp_path: Path) -> None:
    manifest = Path(save_now(Checkpointer(tmp_path), checkpoint(1)), "manifest.json")
    fields = json.loads(manifest.read_text())
    del fields["files"]["optimizer.safetensors"]
    manifest.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="isn't what was written"):
        Checkpointer(tmp_path).verify(1)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load(tmp_path / "best")
