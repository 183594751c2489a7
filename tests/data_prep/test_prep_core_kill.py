"""SIGKILL at arbitrary system calls of a job, any task and both formats, then the job again: the same bytes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_files import make_coco
from prep_helpers import folder_job, make_folder, snapshot

from data_prep.config import CocoSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare
from data_prep.verify import verify

CALLS = ("writev", "write", "fsync", "preadv", "replace", "unlink", "mkdir", "rmdir")

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def job(task: str, folder: Path, output: Path) -> PrepareConfig:
    if task == "classification":
        source = folder / "source"
        return folder_job(source if source.exists() else make_folder(source), output, overwrite=True)
    source = folder / "coco"
    return PrepareConfig(
        source=CocoSource(path=source if source.exists() else make_coco(source, 5, 2)),
        output=OutputConfig(path=output, samples_per_shard=2, overwrite=True),
    )


def run(config: PrepareConfig) -> None:
    prepare(config, progress=lambda line: None)


def in_a_killed_child(work: Callable[[], None], nth: int) -> int:
    """Run `work` in a fork that kills itself before the n-th of the calls that touch the disk; its status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        count = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return wrapped

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    except BaseException as error:
        print(error, file=sys.stderr)
    os._exit(1)


def check(task: str, folder: Path, instants: range) -> int:
    """How many of the instants lay within the job."""
    run(job(task, folder, folder / "undisturbed" / "out"))
    expected = snapshot(folder / "undisturbed" / "out")
    assert verify(folder / "undisturbed" / "out").ok
    killed = 0
    for nth in instants:
        config = job(task, folder, folder / f"killed-{nth}" / "out")
        status = in_a_killed_child(lambda: run(config), nth)  # noqa: B023
        assert status in (0, signal.SIGKILL)
        killed += status == signal.SIGKILL
        run(config)
        assert snapshot(config.output.path) == expected, f"killed before call {nth}"
        if status == 0:
            break
    return killed


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_some_instants(tmp_path: Path, task: str) -> None:
    assert check(task, tmp_path, range(3, 100, 19)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_every_instant(tmp_path: Path, task: str) -> None:
    assert check(task, tmp_path, range(1, 10_000)) > 100


@pytest.mark.slow
def test_killed_again_and_again_and_while_an_old_dataset_is_replaced(tmp_path: Path) -> None:
    """Attempts live a little longer each time; the folder holds a dataset of another seed at first."""
    config = job("classification", tmp_path, tmp_path / "undisturbed" / "out")
    other = config.model_copy(update={"shuffle_seed": 1})
    run(config)
    expected = snapshot(tmp_path / "undisturbed" / "out")
    output = config.output.model_copy(update={"path": tmp_path / "killed" / "out"})
    run(other.model_copy(update={"output": output}))
    config = config.model_copy(update={"output": output})
    attempts = 0
    while in_a_killed_child(lambda: run(config), 3 + 3 * attempts) == signal.SIGKILL:
        attempts += 1
    assert attempts > 8
    assert snapshot(output.path) == expected
