"""A checkpoint is committed or does not exist; a damaged one is never loaded."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from convmlp_platform.checkpoints import layout
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.errors import CheckpointError


def checkpoint(step: int) -> Checkpoint:
    tensors = {
        "model": {"w": torch.full((3, 4), float(step))},
        "optimizer": {"w/exp_avg": torch.ones(3, 4) * step},
    }
    return Checkpoint(step, tensors, {"samples_seen": 8 * step})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = Checkpointer(tmp_path).save(checkpoint(7))
    assert Checkpointer(tmp_path).latest() == saved
    assert (tmp_path / "latest").read_text() == saved.name == "step-000000007"
    found = load(saved)
    assert (found.step, found.facts["samples_seen"]) == (7, 56)
    assert torch.equal(found.tensors["model"]["w"], torch.full((3, 4), 7.0))
    assert found.tensors.keys() == {"model", "optimizer"}


def test_old_ones_retire_and_the_newest_stay(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        checkpointer.save(checkpoint(step))
    assert layout.committed_steps(tmp_path) == [3, 10]
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
    good, bad = checkpointer.save(checkpoint(1)), checkpointer.save(checkpoint(2))
    file = bad / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-9])
    else:
        content[len(content) // 2] ^= 0x10
        file.write_bytes(content)
    assert checkpointer.latest() == good


def test_when_all_are_damaged_it_says_so(tmp_path: Path) -> None:
    saved = Checkpointer(tmp_path).save(checkpoint(1))
    (saved / "state.json").unlink()
    with pytest.raises(CheckpointError, match="all 1 checkpoints"):
        Checkpointer(tmp_path).latest()


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    saved = Checkpointer(tmp_path).save(checkpoint(1))
    (saved / "manifest.json").write_text('{"files": {"../latest": {"bytes": 1, "sha256": ""}}}')
    with pytest.raises(CheckpointError, match="outside"):
        layout.verify(saved)


def test_no_permission_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match="can't write checkpoint"):
        Checkpointer(tmp_path / "runs").save(checkpoint(1))


def kill_at_operation(folder: Path, point: int) -> None:
    """Make this process die before its `point`-th open, rename or removal in `folder`."""
    count = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(folder) in str(
            args[0]
        ):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def save_in_child(folder: Path, step: int, point: int) -> int:
    """Save in a process of its own that is killed at `point`; returns how it ended (0: it got through)."""
    child = os.fork()
    if child == 0:
        kill_at_operation(folder, point)
        Checkpointer(folder, keep=2).save(checkpoint(step))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Kills a real process before each of its opens, renames and removals, until one gets through."""
    loaded = []
    for point in range(1, 200):
        folder = tmp_path / str(point)
        before = Checkpointer(folder, keep=2)
        before.save(checkpoint(1))
        before.save(checkpoint(2))
        code = save_in_child(folder, 3, point)
        newest = Checkpointer(folder).latest()
        assert newest is not None
        loaded.append(load(newest).step)
        Checkpointer(folder).save(checkpoint(4))
        assert not [path for path in folder.iterdir() if path.name.startswith(".")], "leftovers stayed"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert code == 0
    assert loaded == sorted(loaded), "once committed, a step stays committed"
    assert {2, 3} == set(loaded)
    assert len(loaded) > 10
