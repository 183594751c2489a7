"""Killed or cut off from power at any operation of a save: what was committed loads, and nothing torn ever does."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from file_operations import Operation, watching
from power_loss import Disk

from convmlp_platform.checkpoints import snapshot
from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load

KEEP = 2
Point = tuple[int, str]
"""The number of an operation, and `before`, `within` (a write gets half-way) or `after` it."""


@pytest.fixture(autouse=True)
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several writes to a file, as large ones have."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 250)


def state(step: int) -> Checkpoint:
    """About 3 kB that differ from step to step."""
    draw = torch.Generator().manual_seed(step)
    weights = {"conv.weight": torch.randn(8, 3, 3, 3, generator=draw), "count": torch.tensor(step)}
    moments = {
        f"conv.weight/{slot}": torch.randn(8, 3, 3, 3, generator=draw) for slot in ("exp_avg", "exp_avg_sq")
    }
    return Checkpoint(step, {"model": weights, "optimizer": moments}, {"samples_seen": 8 * step})


def check(folder: Path, reported: int, damaged: tuple[int, ...] = ()) -> int:
    """The newest committed step (0: none), after making sure that it is one that was saved, bit for bit, that it is
    no older than the newest one `reported` as committed, and that no other committed step is torn."""
    checkpointer = Checkpointer(folder)
    for step in checkpointer.store.steps():
        if step not in damaged:
            checkpointer.verify(step)
    location = checkpointer.newest() if set(checkpointer.store.steps()) - set(damaged) else None
    if location is None:
        assert reported == 0
        return 0
    found = load(location)
    wanted = state(found.step)
    assert found.step >= reported
    assert found.facts == {**wanted.facts, "step": found.step}
    for group, tensors in wanted.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        assert all(torch.equal(found.tensors[group][name], tensor) for name, tensor in tensors.items())
    return found.step


def save(folder: Path, step: int, report: Callable[[int], None] = lambda step: None) -> None:
    """One save as a run makes it, in the background; `report` is called at the commit."""
    saver = AsyncCheckpointer(ReportingCheckpointer(folder, report))
    saver.save(state(step))
    saver.close()


class ReportingCheckpointer(Checkpointer):
    """Tells of a commit in the instant in which the platform is told."""

    def __init__(self, folder: Path, report: Callable[[int], None]) -> None:
        super().__init__(folder, KEEP)
        self._report = report

    def write(self, step: int, *args: Any, **named: Any) -> str:
        inner = named.pop("on_commit")

        def on_commit(location: str, digest: str) -> None:
            inner(location, digest)
            self._report(step)

        return super().write(step, *args, **named, on_commit=on_commit)


def operations_of(folder: Path, step: int) -> list[Operation]:
    """What a save does, by doing it."""
    done: list[Operation] = []

    def record(operation: Operation, call: Callable[[], Any]) -> Any:
        done.append(operation)
        return None if operation.kind == "fsync" else call()

    with watching(folder, record):
        save(folder, step)
    return done


def points_of(operations: list[Operation]) -> Iterator[Point]:
    """Before each operation and, for writes, in its middle; and after the last."""
    for number, operation in enumerate(operations):
        yield number, "before"
        if operation.kind == "write":
            yield number, "within"
    yield len(operations) - 1, "after"


def save_and_die(folder: Path, step: int, point: Point, may_live: bool = False) -> int:
    """Save in a process that is killed at `point`; the step that it reported as committed (0: none).

    The kernel has what a killed process wrote, synced or not, so fsync is counted but left out.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            done = 0

            def stop(operation: Operation, call: Callable[[], Any]) -> Any:
                nonlocal done
                number, when = point
                here, done = done == number, done + 1
                if here and when == "within" and operation.kind == "write":
                    with (folder.parent / operation.path).open("ab") as file:
                        file.write(operation.data[: len(operation.data) // 2])
                if here and when != "after":
                    os.kill(os.getpid(), signal.SIGKILL)
                result = None if operation.kind == "fsync" else call()
                if here:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            with watching(folder, stop):
                save(folder, step, lambda step: os.write(writing, bytes([step])) and None)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reported = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == -signal.SIGKILL or may_live, f"the save went through without reaching {point}"
    return reported[-1] if reported else 0


def kill_everywhere(tmp_path: Path, steps: range) -> tuple[int, set[str]]:
    """Kill every save from `steps` at each of its points; (points, kinds of operations)."""
    base, work, count, kinds = tmp_path / "base", tmp_path / "work", 0, set[str]()
    for step in range(1, steps.start):
        save(base / "run", step)
    for step in steps:
        base.mkdir(exist_ok=True)
        restore(base, work)
        operations = operations_of(work / "run", step)
        kinds |= {operation.kind for operation in operations}
        for point in points_of(operations):
            restore(base, work)
            reported = save_and_die(work / "run", step, point) or step - 1
            newest = check(work / "run", reported)
            assert newest in (step - 1, step)
            count += 1
        save(work / "run", step + 1)
        check(work / "run", step + 1)
        leftovers = [path.name for path in (work / "run").iterdir() if path.name.startswith(".")]
        assert not leftovers
        save(base / "run", step)
    return count, kinds


def restore(base: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)


@pytest.mark.slow
def test_a_kill_at_any_operation_of_a_save(tmp_path: Path) -> None:
    """The third save: the first that retires one."""
    count, kinds = kill_everywhere(tmp_path, range(3, 4))
    assert count > 50
    assert kinds == {"truncate", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"} | {"replace"}


@pytest.mark.slow
def test_a_kill_at_any_operation_of_many_saves(tmp_path: Path) -> None:
    """From the first save into a folder that isn't there on."""
    count, _ = kill_everywhere(tmp_path, range(1, 11))
    assert count >= 500


@pytest.mark.slow
def test_kills_upon_kills(tmp_path: Path) -> None:
    """Each save meets what the killed ones before left."""
    draw, folder = random.Random(1), tmp_path / "run"
    save(folder, 1)
    committed, step = 1, 1
    for _ in range(150):
        step += 1
        point = draw.randint(0, 60), draw.choice(["before", "within", "after"])
        reported = save_and_die(folder, step, point, may_live=True)
        committed = check(folder, max(committed, reported))
    assert committed > 50


def lose_power_everywhere(tmp_path: Path, saves: int, mixed: int) -> int:
    """Cut the power after each operation of several saves, by each rule; how many outcomes were looked at."""
    log: list[Operation | int] = []

    def record(operation: Operation, call: Callable[[], Any]) -> Any:
        log.append(operation)
        return None if operation.kind == "fsync" else call()

    live = tmp_path / "live" / "checkpoints"
    live.parent.mkdir()
    with watching(live, record):
        for step in range(1, saves + 1):
            save(live, step, log.append)
    disk, reported, count, draw = Disk(), 0, 0, random.Random(0)
    target = tmp_path / "after"
    for entry in log:
        if isinstance(entry, int):
            reported = entry
        else:
            disk.apply(entry)
            if entry == Operation("mkdir", "checkpoints"):
                # Only what lies within the watched folder is recorded; the test of the folder's own name is below.
                disk.root.durable = dict(disk.root.names)
        for rule in ("lost", "names only", *["mixed"] * mixed):
            shutil.rmtree(target, ignore_errors=True)
            disk.after_power_loss(target, rule, draw)
            check(target / "checkpoints", reported)
            count += 1
    assert reported == saves
    return count


def test_power_loss_at_any_operation(tmp_path: Path) -> None:
    assert lose_power_everywhere(tmp_path, saves=3, mixed=1) > 300


@pytest.mark.slow
def test_power_loss_at_any_operation_of_many_saves(tmp_path: Path) -> None:
    assert lose_power_everywhere(tmp_path, saves=6, mixed=12) > 3000


def test_the_power_loss_rules_catch_a_missing_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness would notice if the folder's fsync before the commit were forgotten."""
    from convmlp_platform.checkpoints.stores import local_store

    monkeypatch.setattr(local_store, "_sync_folder", lambda folder: None)
    with pytest.raises(AssertionError):
        lose_power_everywhere(tmp_path, saves=2, mixed=0)


def test_the_folder_itself_is_durable(tmp_path: Path) -> None:
    """Every new folder on the way down is fsynced in the one above."""
    seen: list[str] = []

    def record(operation: Operation, call: Callable[[], Any]) -> Any:
        seen.append(f"{operation.kind} {operation.path}")
        return call()

    with watching(tmp_path, record):
        save(tmp_path / "runs" / "one", 1)
    top = tmp_path.name
    assert seen[:4] == [f"mkdir {top}/runs", f"fsync {top}", f"mkdir {top}/runs/one", f"fsync {top}/runs"]


def test_a_damaged_step_is_replaced_whatever_happens(tmp_path: Path) -> None:
    """The run resumed from the step before it and comes to it again."""
    base, work = tmp_path / "base", tmp_path / "work"
    for step in (1, 2, 3):
        save(base / "run", step)
    (base / "run" / "step-000000003" / "model.safetensors").write_bytes(b"torn")
    restore(base, work)
    operations = operations_of(work / "run", 3)
    assert check(work / "run", 3) == 3
    for point in list(points_of(operations))[::3]:
        restore(base, work)
        reported = save_and_die(work / "run", 3, point)
        assert check(work / "run", reported or 2, damaged=() if reported else (3,)) in (2, 3)
