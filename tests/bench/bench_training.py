"""`make bench`: the step of ConvMLP-S on this machine's cores, beside the authors' code and against the cores' limits.

    python tests/bench/bench_training.py [--network convmlp_s] [--rounds 11]

Contestants take turns in one run and the median of their rounds counts, so that other load on the machine hits all
alike. The matrix rate is that of the best square product measured in the same run. bf16 takes part where the CPU has
instructions for it. A GPU has `make bench-gpu`; data have `make bench-data`, saving has `make bench-checkpoint`.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from gpu_steps import Scale, engine_step, limits, measured, plain_step, step_flops, warmed

from convmlp_platform.distributed import joined_world
from convmlp_platform.launch.cluster.capacity import cpu_has_bf16

AUTHORS = "the authors' code, fp32"


@dataclass(frozen=True)
class Cores(Scale):
    """Images of 224 pixels, 16 a step, on a CPU."""

    computed_in: str = "fp32"

    @property
    def precision(self) -> str:
        return self.computed_in

    @property
    def batch(self) -> int:
        return 4 if self.tiny else 16

    @property
    def steps(self) -> int:
        return 1 if self.tiny else 2

    @property
    def matrix_side(self) -> int:
        return 256 if self.tiny else 2048

    @property
    def copied_bytes(self) -> int:
        return 1 << 22 if self.tiny else 1 << 29


def table(network: str, rounds: int, *, tiny: bool = False) -> str:
    """A row a contestant, in Markdown."""
    cores = Cores(tiny, torch.device("cpu"))
    steps, rates, flops = {AUTHORS: plain_step(network, cores)}, limits(cores).flops, 0
    for precision in ("fp32", *(["bf16"] if cpu_has_bf16() else [])):
        scale = Cores(tiny, cores.device, precision)
        rates |= limits(scale).flops
        steps[f"ours, {precision}"], _ = engine_step(network, scale, compiled=False)
    for name, step in steps.items():
        warmed(step, cores)
        if name == "ours, fp32":
            flops = step_flops(step)
    seconds = measured(steps, cores, rounds)
    lines = [
        f"| {network}, {cores.pixels} px, {cores.batch} a step | images/s | to the authors' | of the matrix rate |",
        "|---|---:|---:|---:|",
    ]
    for name, taken in seconds.items():
        rate = rates[name.rpartition(" ")[2]]
        ratio = seconds[AUTHORS] / taken
        lines.append(f"| {name} | {cores.batch / taken:.1f} | {ratio:.2f} | {flops / taken / rate:.0%} |")
    shown = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items())
    return "\n".join([*lines, "", f"The matrix rate of {torch.get_num_threads()} threads: {shown}."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="convmlp_s", choices=("convmlp_s", "convmlp_m", "convmlp_l"))
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    with joined_world(use_gpu=False):
        print(table(given.network, given.rounds))


if __name__ == "__main__":
    main()
