"""Kill groups of real reading processes at random instants, resume them, and let the ledger prove what was used.

    python tests/ledger_harness.py --kills 200 --seed 0

Every rank is a process that reads real batches through `TrainLoader` (with 0 to 4 reader processes of its own) and
records them with the product's writer. No collectives run: between checkpoints ranks are as far apart as they like,
which is worse than training. A group is killed with SIGKILL, after a random number of steps or by a rank in the
middle of writing a frame, and a new one of another size goes on from a committed checkpoint. Nothing sleeps: the
parent waits on pipes. It imports torch once and forks, so a kill costs about half a second.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from ledger_runs import MadeUpRun
from prepared import digits

from convmlp.transforms.pixels import Box
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading.loader import TrainLoader
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.ledger.ledger import LedgerWriter, claim_attempt
from convmlp_platform.ledger.proof import check_ledger

FORMATS = ("webdataset", "ffcv")
# (global batch, micro-batch, streams, block, window): 6 to 12 micro-batches, which most world sizes don't divide.
SHAPES = (
    (24, 4, 6, 64, 4096),
    (32, 4, 8, 16, 64),
    (40, 5, 4, 8, 32),
    (16, 2, 16, 4, 100),
    (36, 3, 12, 64, 256),
    (96, 8, 2, 32, 512),
    (88, 8, 11, 64, 4096),
)
MAX_WORLD_SIZE, MAX_READERS, MAX_READER_PROCESSES = 8, 4, 12


class FirstPixel:
    """The cheapest transform: the first pixel of images is kept."""

    size = 1
    dtype = np.dtype(np.uint8)
    box = Box(0, 0, 1, 1)

    def seed(self, key: int) -> None:
        pass

    def view(self, height: int, width: int) -> FirstPixel:
        return self

    def smallest(self, size: int) -> tuple[int, int]:
        return 1 << 20, 1 << 20

    def render(self, pixels: Any, view: Any, out: Any) -> None:
        out[:] = pixels[:1, :1]


class KilledWhileWriting(LedgerWriter):
    """Dies by SIGKILL after `keep` bytes of the frame of step `at`."""

    at, keep = -1, 0

    def append(self, step: int, micro_batches: Any) -> None:
        self._step = step
        super().append(step, micro_batches)

    def _write(self, content: bytes | bytearray) -> None:
        if self._step == self.at:
            os.write(self._descriptor, content[: self.keep])
            os.kill(os.getpid(), signal.SIGKILL)
        super()._write(content)


@dataclass(frozen=True)
class Group:
    """One attempt: `world_size` ranks that train from `start` to `stop`."""

    attempt: int
    parent: int
    start: int
    stop: int
    world_size: int
    num_workers: int
    save_every: int
    torn: tuple[int, int, int] | None
    """(rank, step, share in 1/1000 of the frame that is written) of the rank that dies while it writes."""


@dataclass
class Totals:
    """What a whole harness run was made of."""

    kills: int = 0
    attempts: int = 0
    runs: int = 0
    most_kills_in_an_epoch: int = 0
    samples: int = 0
    void_samples: int = 0
    torn_files: int = 0
    complete_epochs: int = 0
    duplicates: int = 0
    losses: int = 0
    problems: list[str] = field(default_factory=list)
    world_sizes: Counter[int] = field(default_factory=Counter)
    readers: Counter[int] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    batch_sizes: set[tuple[int, int]] = field(default_factory=set)
    seconds: float = 0.0


class Barrier:
    """Rank 0 waits for all others, acts, and lets them go on. Over pipes, which die with the ranks."""

    def __init__(self, world_size: int) -> None:
        self.arrive = os.pipe()
        self.release = [os.pipe() for _ in range(world_size)]

    def wait(self, rank: int, act: Any = lambda: None) -> None:
        if rank:
            os.write(self.arrive[1], b"x")
            os.read(self.release[rank][0], 1)
            return
        waiting = len(self.release) - 1
        while waiting:
            waiting -= len(os.read(self.arrive[0], waiting))
        act()
        for _, write in self.release[1:]:
            os.write(write, b"x")

    def close(self) -> None:
        for ends in (self.arrive, *self.release):
            for end in ends:
                os.close(end)


def train(run: MadeUpRun, loader: TrainLoader, group: Group, barrier: Barrier, progress: int) -> None:
    """What a rank does: as the trainer, but for the model."""
    rank = loader.rank
    header = run.header(rank, group.world_size, group.attempt, group.parent, group.start)
    writer: LedgerWriter
    if group.torn and group.torn[0] == rank:
        writer = KilledWhileWriting(run.ledger, header)
        writer.at, writer.keep = group.torn[1], group.torn[2] * header.frame.itemsize // 1000
    else:
        writer = LedgerWriter(run.ledger, header)
    barrier.wait(rank)  # as training's first collective
    for step, micro_batches in enumerate(loader.steps(group.start, group.stop), group.start):
        os.write(progress, b"x")  # before the frame: the parent's kill then hits about its writing
        writer.append(step, micro_batches)
        if (step + 1) % group.save_every == 0 or step + 1 == group.stop:
            writer.sync()
            barrier.wait(rank, lambda done=step + 1: commit(run, done, group.attempt))


def commit(run: MadeUpRun, step: int, attempt: int) -> None:
    """As the checkpointer: one rename; a step that is committed stays as it is."""
    folder = run.path / "checkpoints"
    target, staging = folder / f"step-{step:09d}", folder / f".staging-{step}-{attempt}"
    if target.exists():
        return
    staging.mkdir(parents=True)
    (staging / "state.json").write_text(json.dumps({"step": step, "attempt": attempt}))
    staging.rename(target)


def committed(run: MadeUpRun) -> list[tuple[int, int]]:
    """(step, attempt) of the checkpoints there are, oldest first; (0, 0) stands for a fresh start."""
    files = (run.path / "checkpoints").glob("step-*/state.json")
    facts = [json.loads(file.read_text()) for file in files]
    return [(0, 0), *sorted((fact["step"], fact["attempt"]) for fact in facts)]


class Scenario:
    """One run on one dataset, killed and resumed `kills` times, and then left to end."""

    def __init__(self, folder: Path, dataset: Path, draw: random.Random, totals: Totals) -> None:
        self.draw, self.totals, self.dataset = draw, totals, dataset
        format = draw.choice(FORMATS)
        manifest = open_manifest(str(dataset))
        self.split = ShardedSplit(dataset, manifest, "train", format)
        batch, micro, streams, block, window = draw.choice(SHAPES)
        order = SampleOrder(len(self.split), streams, draw.randrange(1 << 30), block, window)
        self.run = MadeUpRun(folder, order, batch, micro, manifest.digest, format)
        self.steps_per_epoch = len(self.split) / batch
        self.stop = int(self.steps_per_epoch * draw.uniform(1.3, 2.3))
        self.killed_at: list[int] = []
        self.zombies: list[tuple[list[int], int]] = []
        totals.formats[format] += 1
        totals.batch_sizes.add((batch, micro))

    def play(self, kills: int) -> None:
        """Kill the run `kills` times and end it; the report goes into the totals."""
        for _ in range(kills):
            self._attempt(kill=True)
        while committed(self.run)[-1][0] < self.stop:
            self._attempt(kill=False)
        for zombie in self.zombies:
            _kill(*zombie)
        report = check_ledger(self.run.path, dataset=self.dataset)
        totals = self.totals
        totals.runs += 1
        totals.samples += report.samples
        totals.void_samples += report.void_samples
        totals.torn_files += report.torn_files
        totals.complete_epochs += report.complete_epochs
        totals.duplicates += report.duplicates
        totals.losses += report.losses
        whole = report.steps == self.stop and report.samples == self.stop * self.run.global_batch_size
        if not (report.ok and whole and report.checked_payloads):
            totals.problems += [f"{self.run.path}: ended at {report.steps} of {self.stop}", *report.lines()]
        epochs = Counter(int(step / self.steps_per_epoch) for step in self.killed_at)
        totals.most_kills_in_an_epoch = max([totals.most_kills_in_an_epoch, *epochs.values()])

    def _attempt(self, kill: bool) -> None:
        # The newest checkpoint, or an older one, as if the newest were damaged.
        candidates = [place for place in committed(self.run) if place[0] < self.stop]
        start, parent = candidates[-1] if self.draw.random() < 0.8 else self.draw.choice(candidates[-3:])
        world_size = self.draw.randint(1, min(MAX_WORLD_SIZE, self.run.num_micro_batches))
        num_workers = self.draw.randint(0, min(MAX_READERS, MAX_READER_PROCESSES // world_size))
        # To be killed within a third of an epoch, so that an epoch sees three and more.
        reach = min(self.stop - start, max(2, int(self.steps_per_epoch / 3)))
        target = self.draw.randint(1, reach * world_size) if kill else None
        torn = None
        if kill and self.draw.random() < 0.4:
            step = start + self.draw.randrange(reach)
            torn = (self.draw.randrange(world_size), step, self.draw.randrange(1, 1000))
            target = None
        attempt = claim_attempt(self.run.ledger)
        save_every = self.draw.randint(1, max(1, int(self.steps_per_epoch / 5)))
        group = Group(attempt, parent, start, self.stop, world_size, num_workers, save_every, torn)
        self.totals.attempts += 1
        self.totals.world_sizes[world_size] += 1
        self.totals.readers[num_workers] += 1
        pids, progress = self._fork(group)
        step = start + _watch(progress, pids, target) // world_size
        zombies, self.zombies = self.zombies, []
        if kill:
            self.totals.kills += 1
            self.killed_at.append(step)
            if world_size > 1 and self.draw.random() < 0.15:
                os.kill(pids[0], signal.SIGKILL)
                self.zombies.append(
                    (pids, progress)
                )  # the others don't know, and go on beside the next attempt
            else:
                _kill(pids, progress)
        else:
            os.close(progress)
            if any(statuses := _wait(pids)):
                self.totals.problems.append(f"attempt {attempt}: ranks ended with {statuses}")
        for zombie in zombies:
            _kill(*zombie)

    def _fork(self, group: Group) -> tuple[list[int], int]:
        barrier = Barrier(group.world_size)
        progress = os.pipe()
        pids: list[int] = []
        sys.stdout.flush()
        for rank in range(group.world_size):
            pid = os.fork()
            if not pid:
                self._child(rank, group, pids[0] if pids else 0, barrier, progress)
            os.setpgid(pid, pids[0] if pids else pid)
            pids.append(pid)
        os.close(progress[1])
        barrier.close()
        return pids, progress[0]

    def _child(
        self, rank: int, group: Group, leader: int, barrier: Barrier, progress: tuple[int, int]
    ) -> NoReturn:
        status = 1
        try:
            os.setpgid(0, leader)
            os.close(progress[0])
            torch.set_num_threads(1)
            run = self.run
            sizes = (run.global_batch_size, run.micro_batch_size)
            loader = TrainLoader(
                self.split, FirstPixel(), run.order, *sizes, rank, group.world_size, group.num_workers
            )
            train(run, loader, group, barrier, progress[1])
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)


def _watch(progress: int, pids: list[int], target: int | None) -> int:
    """Wait for `target` steps over all ranks, or for the end of the first rank; returns the steps seen."""
    ends = [os.pidfd_open(pid) for pid in pids]
    seen, ended = 0, False
    while not ended and (target is None or seen < target):
        ready, _, _ = select.select([progress, *ends], [], [])
        if progress in ready:
            seen += len(os.read(progress, 4096 if target is None else target - seen))
        ended = any(end in ready for end in ends)
    for end in ends:
        os.close(end)
    return seen


def _kill(pids: list[int], progress: int) -> None:
    """All ranks of a group and their readers, at once."""
    os.killpg(pids[0], signal.SIGKILL)
    os.close(progress)
    _wait(pids)


def _wait(pids: list[int]) -> list[int]:
    return [os.waitpid(pid, 0)[1] for pid in pids]


def play(kills: int, seed: int, folder: Path) -> Totals:
    """Runs with up to ten kills each, until there were `kills`."""
    started, draw, totals = time.monotonic(), random.Random(seed), Totals()
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    dataset = digits(*FORMATS)
    gc.freeze()  # so that no child's collector copies the parent's pages
    while totals.kills < kills:
        scenario = Scenario(folder / f"run-{totals.runs}", dataset, draw, totals)
        scenario.play(min(draw.randint(6, 10), kills - totals.kills))
        if totals.problems:
            break
    totals.seconds = round(time.monotonic() - started, 1)
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="convmlp-ledger-") as folder:
        totals = play(options.kills, options.seed, Path(folder))
    print(json.dumps({name: _plain(value) for name, value in vars(totals).items()}, indent=2))
    sys.exit(bool(totals.problems))


def _plain(value: Any) -> Any:
    if isinstance(value, Counter):
        return {str(key): value[key] for key in sorted(value)}
    return sorted(value) if isinstance(value, set) else value


if __name__ == "__main__":
    main()
