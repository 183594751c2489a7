"""What a job costs over its bare step, and which part of it costs what. Part of `make bench-restart`.

    python tests/bench/bench_overhead.py [--pairs 24] [--large-pairs 9]

Real runs by `training.run`, on one rank and on two gloo ranks, on scikit-learn's digits: the tiny network as
jobs/pretrain_digits.yaml trains it, and ConvMLP-S at 224 pixels with 4 images a rank. Each rank has a core of its own.
Blocks of the job's steps alternate with blocks of bare ones in the same process, on the same engine: forward, backward,
gradient norm, update, on micro-batches that lie in memory. A bare block is compared with the mean of the two around it,
so that a machine that slows down hits both. The interval is a bootstrap's over the blocks. Each part's own time is
taken besides; what they leave of the difference is told as the rest. Computing is a part, too: the same calls take
longer where images have just been read by the same core, as its caches hold other things then. One row has a process
of its own read, on the other core. Saves and evaluations are left out: they have `make bench-checkpoint`.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from prepared import digits
from ranks import run_ranks

from convmlp_platform.config.load import load_job
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.engine.engine import Engine
from convmlp_platform.health.heartbeat.heartbeat import HeartbeatWriter
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.ledger.ledger import LedgerWriter
from convmlp_platform.training import run, step
from convmlp_platform.training.build import build_run
from convmlp_platform.training.outputs.goodput_callback import GoodputLog
from convmlp_platform.training.step import GuardedSteps, StepResult
from convmlp_platform.training.step_plan import TrainState
from convmlp_platform.training.trainer import Trainer

JOB = Path(__file__).resolve().parents[2] / "jobs" / "pretrain_digits.yaml"
BLOCK = 10
"""Steps. The journal gets its line once in as many."""
READER = "data.num_workers=1"
WARM_UP = 2
"""Blocks of each kind."""
PARTS = ("reading", "agreement", "heartbeat", "goodput", "ledger", "journal")
COMPUTING = "computing"
"""A part of bare steps, too."""
TIMED = (
    ("heartbeat", HeartbeatWriter, "beat"),
    ("heartbeat", HeartbeatWriter, "step_done"),
    ("goodput", PhaseClock, "enter"),
    ("goodput", PhaseClock, "progress"),
    ("goodput", PhaseClock, "step_done"),
    ("goodput", GoodputLog, "line"),
    ("ledger", LedgerWriter, "append"),
    (COMPUTING, Engine, "compute"),
    (COMPUTING, Engine, "square_norm"),
    (COMPUTING, Engine, "update"),
    ("journal", Trainer, "_tell"),
)


@dataclass
class Meter:
    """Seconds of the blocks, and of the parts within, each in total and by nothing else."""

    job: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    parts: list[dict[str, float]] = field(default_factory=list)
    bare_parts: list[dict[str, float]] = field(default_factory=list)
    _now: dict[str, float] = field(default_factory=dict)
    _open: list[float] = field(default_factory=list)
    """Of the parts that are being timed, the innermost last: the seconds of parts within."""

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its time taken; the time of a part within it isn't counted twice."""

        def method(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            self._open.append(0.0)
            try:
                return call(*args, **options)
            finally:
                seconds = time.perf_counter() - start
                self._now[part] = self._now.get(part, 0.0) + seconds - self._open.pop()
                if self._open:
                    self._open[-1] += seconds

        return method

    def job_block(self, seconds: float) -> None:
        self.job.append(seconds)
        self.parts.append(self._now)
        self._now = {}

    def bare_block(self, seconds: float) -> None:
        self.bare.append(seconds)
        self.bare_parts.append(self._now)
        self._now = {}


def instrument(meter: Meter) -> None:
    """Put the stopwatches in, and a block of bare steps after each block of the job's."""
    for part, owner, name in TIMED:
        setattr(owner, name, meter.timed(part, getattr(owner, name)))
    step.agree = meter.timed("agreement", step.agree)  # type: ignore[attr-defined]
    take, whole = GuardedSteps.take, Trainer._step
    kept: list[MicroBatch] = []
    done, seconds = 0, 0.0

    def keeping(steps: GuardedSteps, micro_batches: Any, **options: Any) -> StepResult:
        kept[:] = micro_batches
        return take(steps, micro_batches, **options)

    def counted(trainer: Trainer, state: TrainState, batches: Any, figures: Any) -> StepResult:
        nonlocal done, seconds
        waiting = _Timed(batches, meter)
        start = time.perf_counter()
        result = whole(trainer, state, waiting, figures)  # type: ignore[arg-type]
        seconds += time.perf_counter() - start
        done += 1
        if done % BLOCK == 0:
            meter.job_block(seconds)
            meter.bare_block(bare_block(trainer, state, kept))
            seconds = 0.0
        return result

    GuardedSteps.take = keeping  # type: ignore[method-assign, assignment]
    Trainer._step = counted  # type: ignore[method-assign, assignment]


class _Timed:
    """An iterator whose waiting is the part "reading"."""

    def __init__(self, batches: Any, meter: Meter) -> None:
        self._next = meter.timed("reading", batches.__next__)

    def __next__(self) -> Any:
        return self._next()


def bare_block(trainer: Trainer, state: TrainState, micro_batches: list[MicroBatch]) -> float:
    """Seconds of as many steps without all that a job does around them."""
    engine = trainer.engine
    told, engine.on_micro_batch = engine.on_micro_batch, lambda done: None
    lr = trainer.plan.lr(state.step)
    start = time.perf_counter()
    for _ in range(BLOCK):
        engine.compute(micro_batches, step=state.step)
        engine.update(lr, math.sqrt(engine.square_norm().item()))
    seconds = time.perf_counter() - start
    engine.on_micro_batch = told
    return seconds


def train(data: str, folder: str, settings: tuple[str, ...], alone: bool) -> Meter:
    """One rank of a run; `alone` on its core, which a reader that it starts would be on, too."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cores = sorted(os.sched_getaffinity(0))
    if alone:
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    meter = Meter()
    instrument(meter)
    # MLflow's own process, which starts meanwhile, isn't what is measured here.
    build_run.open_tracker = lambda *args: None  # type: ignore[attr-defined, assignment]
    own = (
        f"data.path={data}",
        f"checkpoint.path={folder}",
        "tracking.register_as=null",
        f"launch.num_workers={size}",
    )
    job = load_job(JOB, [*own, *settings])
    clock = PhaseClock(HeartbeatWriter(_memory() / f"bench-beat-{os.getpid()}", rank, size))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        run.run(job, clock=clock)  # type: ignore[arg-type]
    with suppress(OSError):
        (_memory() / f"bench-beat-{os.getpid()}").unlink()
    return Meter(meter.job, meter.bare, meter.parts, meter.bare_parts)


def _memory() -> Path:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def differences(job: list[float], bare: list[float]) -> list[float]:
    """Of each bare block that lies between two of the job's: by how much the job's are longer, as a share of it."""
    return [
        (before + after) / (2 * between) - 1
        for before, after, between in zip(job, job[1:], bare, strict=False)
    ]


def interval(values: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """The median, and the bounds between which it lies with a probability of 95 % (bootstrap)."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return statistics.median(values), medians[draws // 40], medians[-draws // 40]


def measure(label: str, world_size: int, pairs: int, settings: tuple[str, ...]) -> str:
    """One row of the table, of rank 0's figures."""
    data = str(digits("webdataset"))
    steps = BLOCK * (pairs + 1 + WARM_UP)
    common = (
        "training.epochs=1000", f"training.max_steps={steps}", "schedule.warmup_epochs=0",
        "eval.every_epochs=1000", f"training.log_every_steps={BLOCK}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = run_ranks(train, world_size, data, folder, (*common, *settings), READER not in settings)[0]
    # The last block holds the end of the run, its save and its evaluation.
    job, bare, parts, bare_parts = (
        values[WARM_UP:-1] for values in (found.job, found.bare, found.parts, found.bare_parts)
    )
    cost, least, most = interval(differences(job, bare))
    base = statistics.median(bare) / BLOCK
    shares = {
        part: statistics.median(block.get(part, 0.0) for block in parts) / BLOCK / base for part in PARTS
    }
    colder = differences(*([block[COMPUTING] for block in blocks] for blocks in (parts, bare_parts)))
    shares[COMPUTING] = statistics.median(colder)
    without = [seconds - block.get("reading", 0.0) for seconds, block in zip(job, parts, strict=True)]
    watched, low, high = interval(differences(without, bare))
    cells = [
        f"{label}, {world_size} rank{'s' if world_size > 1 else ''}",
        str(len(bare) - 1),
        f"{1e3 * base:.1f} ms",
    ]
    cells += [f"{cost:+.1%} ({least:+.1%} to {most:+.1%})", f"{watched:+.1%} ({low:+.1%} to {high:+.1%})"]
    cells += [f"{share:.2%}" for share in shares.values()]
    cells.append(f"{cost - sum(shares.values()):+.2%}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24, help="of blocks, of the tiny network")
    parser.add_argument("--large-pairs", type=int, default=9, help="of blocks, of ConvMLP-S")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load average {load:.1f}\n"
    )
    header = [
        "network", "pairs of blocks", "bare step", "the job's costs more (95 %)",
        "without reading (95 %)", *PARTS, COMPUTING, "rest",
    ]  # fmt: skip
    print(f"| {' | '.join(header)} |")
    print(f"|---|{'---:|' * (len(header) - 1)}", flush=True)
    print(measure("ConvMLP-tiny, 32 px, read by a process", 1, options.pairs, (READER,)), flush=True)
    for ranks in (1, 2):
        print(measure("ConvMLP-tiny, 32 px", ranks, options.pairs, ()), flush=True)
    for ranks in (1, 2):
        batch = (f"training.global_batch_size={4 * ranks}", "training.micro_batch_size=4")
        large = (*batch, "model.name=convmlp_s", "data.image_size=224")
        print(measure("ConvMLP-S, 224 px", ranks, options.large_pairs, large), flush=True)
    print(
        "\nShares of the bare step; reading happens in the rank's own process unless the row says otherwise. The "
        "agreement has the wait for the slower rank in it. Computing: by how much longer the bare step's own calls "
        "take in the job."
    )


if __name__ == "__main__":
    main()
