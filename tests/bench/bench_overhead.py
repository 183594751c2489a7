"""What watching costs a step: heartbeat, goodput, ledger, and the ranks' agreement. Part of `make bench-restart`.

    python tests/bench/bench_overhead.py [--steps 400] [--large-steps 60]

Real runs by `training.run`, on one rank and on two gloo ranks, on scikit-learn's digits: the tiny network as
jobs/pretrain_digits.yaml trains it, and ConvMLP-S at 224 pixels with 4 images a rank. Within each run, blocks of
steps with all parts switched off from here alternate with blocks as they are. Each part's own time is taken besides:
where a step takes 100 ms, a difference of 0.1 ms drowns in the noise of whole steps, and the parts' times don't.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from prepared import digits
from ranks import run_ranks

from convmlp_platform.config.load import load_job
from convmlp_platform.data.reading.loader import TrainLoader
from convmlp_platform.health.heartbeat.heartbeat import HeartbeatWriter
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.ledger.ledger import LedgerWriter
from convmlp_platform.training import run, step
from convmlp_platform.training.build import build_run
from convmlp_platform.training.guard.agreement import Agreement
from convmlp_platform.training.outputs.goodput_callback import GoodputLog

JOB = Path(__file__).resolve().parents[2] / "jobs" / "pretrain_digits.yaml"
BLOCK, WARM_UP = 5, 10
TIMED = (
    ("heartbeat", HeartbeatWriter, "beat"),
    ("heartbeat", HeartbeatWriter, "step_done"),
    ("clock", PhaseClock, "enter"),
    ("clock", PhaseClock, "progress"),
    ("clock", PhaseClock, "step_done"),
    ("goodput lines", GoodputLog, "line"),
    ("ledger", LedgerWriter, "append"),
)


@dataclass
class Meter:
    """Seconds of the parts, by step, and of whole steps; `on` says whether the parts are at work."""

    on: bool = True
    now: dict[str, float] = field(default_factory=dict)
    in_clock: bool = False
    parts: list[dict[str, float]] = field(default_factory=list)
    steps: list[tuple[bool, float]] = field(default_factory=list)

    def add(self, part: str, seconds: float) -> None:
        self.now[part] = self.now.get(part, 0.0) + seconds


def timed(meter: Meter, part: str, call: Callable[..., Any], off: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, with its time taken; `off` in its place while the parts are switched off."""

    def method(*args: Any, **options: Any) -> Any:
        if not meter.on:
            return off(*args, **options)
        meter.in_clock |= part == "clock"
        start = time.perf_counter()
        try:
            return call(*args, **options)
        finally:
            seconds = time.perf_counter() - start
            meter.add(part, seconds)
            meter.in_clock &= part != "clock"
            if meter.in_clock and part == "goodput lines":  # counted once
                meter.add("clock", -seconds)

    return method


def without_beats(call: Callable[..., Any]) -> Callable[..., Any]:
    """The clock alone, which training needs for its own figures: no one listens to it."""

    def method(clock: PhaseClock, *args: Any, **options: Any) -> Any:
        beats, clock.beats = clock.beats, None
        try:
            return call(clock, *args, **options)
        finally:
            clock.beats = beats

    return method


def instrument(meter: Meter) -> None:
    """Put the switches and the stopwatches in."""
    for part, owner, name in TIMED:
        call = getattr(owner, name)
        off = without_beats(call) if owner is PhaseClock else (lambda *args, **options: None)
        setattr(owner, name, timed(meter, part, call, off))
    nothing = Agreement(False, 0.0, 0.0)
    step.agree = timed(meter, "agreement", step.agree, lambda *args: nothing)  # type: ignore[attr-defined]
    steps = TrainLoader.steps

    def switched(loader: TrainLoader, start: int, stop: int) -> Iterator[Any]:
        began = None
        for index, batch in enumerate(steps(loader, start, stop)):
            if began is not None:
                meter.steps.append((meter.on, time.perf_counter() - began))
                meter.parts.append(meter.now)
            meter.on, meter.now, began = index // BLOCK % 2 == 0, {}, time.perf_counter()
            yield batch
        meter.on = True

    TrainLoader.steps = switched  # type: ignore[method-assign]


def train(data: str, folder: str, settings: tuple[str, ...]) -> tuple[list[Any], list[Any]]:
    """One rank of a run; returns the `steps` and `parts` of its meter."""
    meter = Meter()
    instrument(meter)
    # MLflow's own process, which starts meanwhile, isn't what is measured here.
    build_run.open_tracker = lambda *args: None  # type: ignore[attr-defined, assignment]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    own = (
        f"data.path={data}",
        f"checkpoint.path={folder}",
        "tracking.register_as=null",
        f"launch.num_workers={size}",
    )
    job = load_job(JOB, [*own, *settings])
    clock = PhaseClock(HeartbeatWriter(_memory() / f"bench-beat-{os.getpid()}", rank, size))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        run.run(job, clock=clock)
    with suppress(OSError):
        (_memory() / f"bench-beat-{os.getpid()}").unlink()
    return meter.steps, meter.parts


def _memory() -> Path:
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path(tempfile.gettempdir())


def measure(label: str, world_size: int, settings: tuple[str, ...]) -> str:
    """One row of the table, of rank 0's figures."""
    data = str(digits("webdataset"))
    with tempfile.TemporaryDirectory() as folder:
        steps, parts = (found[WARM_UP:] for found in run_ranks(train, world_size, data, folder, settings)[0])
    on = [seconds for is_on, seconds in steps if is_on]
    off = statistics.median(seconds for is_on, seconds in steps if not is_on)

    def of_steps(part: str) -> list[float]:
        return [found.get(part, 0.0) for (is_on, _), found in zip(steps, parts, strict=True) if is_on]

    heartbeat, clock, ledger, agreement = (
        statistics.median(of_steps(part)) for part in ("heartbeat", "clock", "ledger", "agreement")
    )
    # Its lines come every few steps, so a median would hide them.
    goodput = clock - heartbeat + statistics.fmean(of_steps("goodput lines"))
    watching = heartbeat + goodput + ledger
    change = statistics.median(on) / off - 1
    cells = [label, str(world_size), f"{1e3 * off:.1f} ms"]
    cells += [f"{1e6 * seconds:.0f} µs" for seconds in (heartbeat, goodput, ledger, agreement)]
    cells += [f"{watching / off:.2%}", f"{(watching + agreement) / off:.2%}", f"{change:+.1%}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of the tiny network")
    parser.add_argument("--large-steps", type=int, default=60, help="of ConvMLP-S")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load average {load:.1f}\n"
    )
    print(
        "| network | ranks | step without | heartbeat | goodput, clock | ledger | agreement "
        "| the first three, of a step | all four | steps with, against without |"
    )
    print(f"|---|{'---:|' * 9}")
    common = ("training.epochs=1000", "eval.every_epochs=1000", "schedule.warmup_epochs=0")
    small = (*common, f"training.max_steps={options.steps}")
    for ranks in (1, 2):
        print(measure("ConvMLP-tiny, 32 px", ranks, small), flush=True)
    for ranks in (1, 2):
        batch = (f"training.global_batch_size={4 * ranks}", "training.micro_batch_size=4")
        large = (*common, *batch, "model.name=convmlp_s", "data.image_size=224")
        print(
            measure("ConvMLP-S, 224 px", ranks, (*large, f"training.max_steps={options.large_steps}")),
            flush=True,
        )
    print(
        "\nThe last column is of whole steps, and as noisy as they are. "
        "The agreement has the gradient's norm, and waits for the slower rank."
    )


if __name__ == "__main__":
    main()
