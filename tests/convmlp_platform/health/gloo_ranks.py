"""Pairs of real ranks that go through steps with a gloo all-reduce, and what goes wrong in the second of each.

    python gloo_ranks.py FOLDER CASE...

Prints one line of JSON, {case: [pid of rank 0, pid of rank 1]}; ends, and its ranks with it, when its input ends.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from convmlp_platform.data.reading import process_name
from convmlp_platform.health.hangs.stacks import register_stacks
from convmlp_platform.health.heartbeat.heartbeat import HeartbeatWriter
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock

FAULT_STEP = 20
SHARD = "train-000017.tar"


class Shards(Dataset[int]):
    """Reads as many bytes as it is asked for; a shard that is a FIFO nobody writes to blocks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, step: int) -> int:
        stuck = step == FAULT_STEP
        shard = self.folder / (SHARD if stuck else "train-000001.tar")
        process_name.reads(shard.name)
        # O_RDWR: opening a FIFO for reading alone would itself wait.
        descriptor = os.open(shard, os.O_RDWR)
        content = os.read(descriptor, 1)
        os.close(descriptor)
        process_name.idle()
        return content[0]

    def __len__(self) -> int:
        return 10**6


def batches(folder: Path, num_workers: int) -> DataLoader[int]:
    return DataLoader(
        Shards(folder),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=lambda _: process_name.become_reader(),
        multiprocessing_context="fork" if num_workers else None,
    )


def train(folder: Path, case: str, rank: int) -> None:
    torch.set_num_threads(1)
    register_stacks(folder / f"stacks-{rank}")
    clock = PhaseClock(HeartbeatWriter(folder / f"heartbeat-{rank}", rank, 2))
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    clock.enter(Phase.COMPILE)
    if case == "reader" and rank == 1:
        data = iter(batches(folder, 1))
    elif case == "fifo" and rank == 1:
        data = iter(batches(folder, 0))
    else:
        data = iter(range(10**6))  # type: ignore[assignment]
    for step in range(10**6):
        began = time.monotonic()
        clock.enter(Phase.DATA, step=step, note=SHARD if step == FAULT_STEP else "train-000001.tar")
        next(data)
        clock.enter(Phase.COMPUTE)
        time.sleep(0.005)
        if case == "gil" and rank == 1 and step == FAULT_STEP:
            re.match("(a+)+$", "a" * 60 + "b")  # for ever in C, and never gives up the interpreter's lock
        clock.enter(Phase.UPDATE)
        dist.all_reduce(torch.ones(()))
        clock.step_done(step + 1, time.monotonic() - began)


def begin(folder: Path, case: str, rank: int) -> int:
    """Its process id."""
    pid = os.fork()
    if not pid:
        try:
            train(folder, case, rank)
        finally:
            os._exit(1)
    return pid


def main() -> None:
    top, pids = Path(sys.argv[1]), {}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for case in sys.argv[2:]:
        folder = top / case
        folder.mkdir()
        (folder / "train-000001.tar").write_bytes(b"x")
        os.mkfifo(folder / SHARD)
        pids[case] = [begin(folder, case, rank) for rank in (0, 1)]
    print(json.dumps(pids), flush=True)
    sys.stdin.read()
    for pair in pids.values():
        for pid in pair:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    os._exit(0)  # torch takes a second to clean up


if __name__ == "__main__":
    main()
