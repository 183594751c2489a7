"""How near the model of docs/scaling.md comes to what two ranks take: memory and step of six pairs, on CPUs over gloo.

    python tests/bench/bench_scaling.py [--steps 9]

One rank's step is measured with one and with two micro-batches, beside another such rank that it has nothing to do
with (two GPUs have a memory each, two cores share one), and what the strategy's exchange takes in gloo; from these the
step of two ranks is predicted and compared with what it is. A rank has one thread. Seconds are those of CPU, all of a
rank: other work on the machine doesn't count, and neither does waiting. Memory: the most that torch's allocator
held, from before the engine is built.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # or threads of two ranks wait for each other, at work
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from accelerate_state import forget_accelerate
from product_step import take_step
from ranks import run_ranks
from torch import nn
from torch.profiler import ProfilerActivity, profile

from convmlp_platform.config.load import parse_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.sample_order import share_of
from convmlp_platform.distributed import joined_world
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.fsdp import sharded_blocks
from convmlp_platform.training.build import parts
from convmlp_platform.training.preflight.memory import build_on_meta, estimate_memory
from convmlp_platform.training.preflight.scaling import Interconnect, Speed, scaled, volumes_of

CLASSES, PIXELS, MICRO = 1000, 64, 8
ROUNDS = 3
MODELS = ("convmlp_s", "resnet18")
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "ZeRO-2": {"strategy": "deepspeed", "zero_stage": 2},
}


class Described:
    """What building asks of a dataset."""

    task, num_classes, mean, std = "classification", CLASSES, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)


@dataclass
class GivenMicro:
    images: torch.Tensor
    targets: torch.Tensor
    number: int
    ghost: bool = False


def job_of(model: str, strategy: str, workers: int, micro_batches: int) -> TrainJob:
    values = {
        "kind": "train",
        "name": "x",
        "model": {"name": model},
        "data": {"path": "d", "image_size": PIXELS},
        "optimizer": {"lr": 1e-4},
        "training": {"steps": 10, "global_batch_size": MICRO * micro_batches, "micro_batch_size": MICRO},
        "engine": STRATEGIES[strategy],
        "launch": {"num_workers": workers, "use_gpu": False},
    }
    job = parse_job(values, "bench-scaling")
    assert isinstance(job, TrainJob)
    return job


def built(job: TrainJob) -> Engine:
    forget_accelerate()
    task = parts.build_task(job, Described())  # type: ignore[arg-type]
    with joined_world(use_gpu=False) as world:
        return parts.build_engine(job, task, Described(), world)  # type: ignore[arg-type]


def one_step(engine: Engine, micro_batches: int, step: int) -> None:
    share = share_of(engine.world.rank, engine.world.size, micro_batches)
    images = torch.zeros((MICRO, 3, PIXELS, PIXELS), dtype=torch.uint8)
    labels = torch.arange(MICRO)
    micros = [GivenMicro(images, labels, n, i >= share.real) for i, n in enumerate(share.numbers)]
    take_step(engine, micros, step=step, lr=1e-4)


def alone(model: str, strategy: str, steps: int) -> list[list[float]]:
    """CPU seconds of each step of one rank, with one micro-batch and with two."""
    engines = {count: built(job_of(model, strategy, 1, count)) for count in (1, 2)}
    found: list[list[float]] = [[], []]
    for step in range(steps + 2):  # in turns: what else the machine does hits both
        for place, count in enumerate(engines):
            found[place].append(seconds(engines[count], count, step))
    return [times[2:] for times in found]


def seconds(engine: Engine, micro_batches: int, step: int) -> float:
    """CPU seconds of a step of this rank, all threads."""
    start = time.process_time()
    one_step(engine, micro_batches, step)
    return time.process_time() - start


def pair(model: str, strategy: str, steps: int) -> tuple[int, list[float], float]:
    """Of this one of two ranks, a micro-batch each: the most bytes that torch's allocator held, from the engine's
    building through three steps; CPU seconds of further steps; and of the exchange of one alone."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorder:
        engine = built(job_of(model, strategy, 2, 2))
        for step in range(3):
            one_step(engine, 2, step)
    with tempfile.TemporaryDirectory() as folder:
        recorder.export_chrome_trace(f"{folder}/trace.json.gz")
        with gzip.open(f"{folder}/trace.json.gz") as file:
            events = json.load(file)["traceEvents"]
    held = max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")
    taken = [seconds(engine, 2, step) for step in range(steps)]
    exchange = exchange_of(strategy, build_on_meta(job_of(model, strategy, 2, 2), CLASSES))
    exchanges = []
    for _ in range(5):
        start = time.process_time()
        exchange()
        exchanges.append(time.process_time() - start)
    return held, taken, statistics.median(exchanges)


def exchange_of(strategy: str, network: nn.Module) -> Callable[[], None]:
    """What two ranks exchange in a step of a micro-batch each (collective): fsdp group by group, others at once."""
    half = torch.zeros(-(-sum(parameter.numel() for parameter in network.parameters()) // 2))
    whole = torch.zeros(2 * len(half))
    size = -(-len(half) // (1 + len(sharded_blocks(network))))

    def exchange() -> None:
        if strategy == "fsdp":
            for part, own in zip(whole.split(2 * size), half.split(size), strict=True):
                for _ in ("forward", "backward"):
                    dist.all_gather_into_tensor(part, own)
                dist.reduce_scatter_tensor(own, part)
            return
        dist.all_reduce(whole)
        if strategy == "ZeRO-2":
            dist.all_gather_into_tensor(whole, half)

    return exchange


def row(model: str, strategy: str, steps: int) -> list[str]:
    """The pair's predictions and measurements, as cells: of rounds the least seconds, as neighbours of the machine's
    host only add some, and the most memory, as it depends on who waits for whom."""
    *taken, held_by_round = zip(*(_round(model, strategy, steps) for _ in range(ROUNDS)), strict=True)
    one, two, measured, exchange = map(min, taken)
    held = max(held_by_round)
    job = job_of(model, strategy, 2, 2)
    memory = estimate_memory(job, CLASSES)
    # `gather_s` counts what leaves a rank, half of it with two.
    rate = volumes_of(job, memory.num_parameters, 1).total / 2 / exchange
    speed = Speed(two - one, max(2 * one - two, 0.0))
    network = Interconnect(within=rate, between=rate, hop_s=0.0, overlaps=False)
    predicted = scaled(job, 2, speed, network, memory, 0).step_s
    return [
        model,
        strategy,
        f"{1e3 * predicted:,.0f} ms",
        f"{1e3 * measured:,.0f} ms",
        f"{predicted / measured - 1:+.0%}",
        f"{memory.total / 2**20:,.0f} MiB",
        f"{held / 2**20:,.0f} MiB",
        f"{memory.total / held - 1:+.0%}",
    ]


def _round(model: str, strategy: str, steps: int) -> tuple[float, float, float, float, int]:
    """CPU seconds of one rank's step with one and with two micro-batches, of two ranks' and of its exchange; bytes."""
    with ThreadPoolExecutor(2) as both:
        apart = [both.submit(run_ranks, alone, 1, model, strategy, steps) for _ in range(2)]
        ranks = [future.result()[0] for future in apart]
    one, two = (statistics.median(ranks[0][count] + ranks[1][count]) for count in (0, 1))
    found = run_ranks(pair, 2, model, strategy, steps)
    measured = statistics.median(found[0][1] + found[1][1])
    return one, two, measured, statistics.mean(rank[2] for rank in found), max(rank[0] for rank in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="of a round")
    parser.add_argument("--only", help="some pairs, e.g. resnet18:ddp,convmlp_s:fsdp")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load average {load:.1f}\n"
    )
    print("| network | strategy | step, predicted | measured | off | memory, predicted | measured | off |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    for model in MODELS:
        for strategy in STRATEGIES:
            if options.only is None or f"{model}:{strategy}" in options.only.split(","):
                print(f"| {' | '.join(row(model, strategy, options.steps))} |", flush=True)


if __name__ == "__main__":
    main()
