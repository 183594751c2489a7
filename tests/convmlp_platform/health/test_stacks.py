"""What a stack says of a wait, and what can be had of processes in all states."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from convmlp_platform.data.reading import process_name
from convmlp_platform.health.hangs.process_view import children_of, look_at, state_of
from convmlp_platform.health.hangs.stacks import collect_stacks, register_stacks
from convmlp_platform.health.hangs.waiting import IDLE, WaitsFor, main_thread, waits_for

SITE = "/env/lib/python3.12/site-packages"
C10D, LOADER = f"{SITE}/torch/distributed/distributed_c10d.py", f"{SITE}/torch/utils/data/dataloader.py"
FSDP = f"{SITE}/torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py"


def dump(*frames: str, thread: str = "") -> str:
    """A dump as faulthandler writes it: `frames` are `file function`, the most recent first."""
    lines = [f'  File "{file}", line 7 in {name}' for file, name in map(str.split, frames)]
    other = f'Thread 0x2 (most recent call first):\n  File "{thread}", line 1 in run\n\n' if thread else ""
    lines = ["Current thread 0x1 (most recent call first):", *lines, '  File "<string>", line 1 in <module>']
    return other + "\n".join(lines)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([f"{C10D} all_reduce"], WaitsFor.RANKS),
        ([f"{C10D} wait", f"{SITE}/deepspeed/comm/torch.py all_reduce"], WaitsFor.RANKS),
        ([f"{FSDP} foreach_all_gather_copy_out"], WaitsFor.RANKS),
        ([f"{SITE}/torch/_ops.py __call__", f"{C10D} wait"], WaitsFor.RANKS),
        (["/app/convmlp_platform/distributed.py wait_for_all"], WaitsFor.RANKS),
        (["/app/convmlp_platform/training/guard/agreement.py agree"], WaitsFor.RANKS),
        ([f"{SITE}/torch/autograd/graph.py _engine_run_backward"], WaitsFor.UNKNOWN),
        ([f"{SITE}/torch/cuda/__init__.py synchronize"], WaitsFor.UNKNOWN),
        (["/lib/selectors.py select", "/lib/queues.py get", f"{LOADER} _try_get_data"], WaitsFor.DATA),
        ([f"{SITE}/torch/nn/modules/conv.py _conv_forward", f"{C10D} forward"], WaitsFor.NOTHING),
        (["/lib/re/__init__.py match", "/app/job.py step"], WaitsFor.NOTHING),
    ],
)
def test_what_a_stack_waits_for(frames: list[str], expected: WaitsFor) -> None:
    text = dump(*frames, thread=f"{SITE}/torch/distributed/elastic/timer.py")
    assert waits_for(text) is expected


def test_no_stack_tells_nothing() -> None:
    for text in ("", "process 7: is gone\n", "Python stacks of 7 (python):\nnone: it is stopped\n"):
        assert main_thread(text) == [] and waits_for(text) is WaitsFor.UNKNOWN


@pytest.fixture
def child() -> Iterator[list[int]]:
    """Processes that the test starts; they are killed after it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def forked(pids: list[int], stacks: Path | None, shard: str | None = None) -> int:
    """A child that waits for ever; returns once it does."""
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        if stacks:
            register_stacks(stacks)
        if shard:
            process_name.become_reader()
            process_name.reads(shard)
        os.write(told, b"!")
        while True:
            signal.pause()
    os.close(told)
    assert os.read(ready, 1) == b"!"
    os.close(ready)
    pids.append(pid)
    return pid


def test_stacks_of_a_waiting_process_can_be_had_again_and_again(child: list[int], tmp_path: Path) -> None:
    pid = forked(child, tmp_path / "stacks")
    for _ in range(2):
        text = collect_stacks(pid, tmp_path / "stacks")
        assert f"process {pid}" in text and "in forked" in text
        assert text.count("most recent call first") == 1, "only the newest dump"


def test_a_process_that_has_not_registered_is_not_killed_by_being_asked(
    child: list[int], tmp_path: Path
) -> None:
    pid = forked(child, None)
    assert "it has not got as far as to answer" in collect_stacks(pid, tmp_path / "stacks")
    assert state_of(pid) in "RS"


def test_a_process_that_is_gone_is_said_to_be(child: list[int], tmp_path: Path) -> None:
    pid = forked(child, None)
    child.clear()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert state_of(pid) == "Z"
    os.waitpid(pid, 0)
    assert state_of(pid) == "X" and look_at(pid) is None
    assert collect_stacks(pid, tmp_path / "stacks") == f"process {pid}: is gone\n"


def test_a_reader_is_named_after_its_shard(child: list[int]) -> None:
    pid = forked(child, None, "webdataset/train-000017.tar")
    assert pid in children_of(os.getpid())
    view = look_at(pid)
    assert view is not None and view.name == "train-000017"
    long = look_at(forked(child, None, "ffcv/validation-0000017.beton"))
    assert long is not None and long.name == "idation-0000017"


def test_an_idle_reader_is_known_as_such(child: list[int]) -> None:
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        process_name.become_reader()
        os.write(told, b"!")
        while True:
            signal.pause()
    child.append(pid)
    os.read(ready, 1)
    assert IDLE in str(look_at(pid))
