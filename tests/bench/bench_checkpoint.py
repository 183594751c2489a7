"""`make bench-checkpoint`: what a save of ConvMLP-L with AdamW state (513 MB) costs, beside torch.save and Ray Train.

    python tests/bench/bench_checkpoint.py [--model convmlp_l] [--saves 10] [--folder FOLDER] [--no-ray]

A loop trains the network all the while; the contestants' saves alternate, so that other load on the machine and on
its disk hits all alike. `stall`: how much longer the loop's thread is held up by a save; `durable`: from its start
until the bytes are on the disk (torch.save and Ray leave that to the kernel: torch.save gets an fsync here, for the
comparison); `step meanwhile`: the loop's steps while a save is being written.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convmlp import create_model
from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load

Groups = dict[str, dict[str, Tensor]]
BETWEEN_SAVES = 2
"""Steps of the loop between two saves."""


@dataclass
class Times:
    """Seconds, one of each a save; `meanwhile`: of the loop's steps while saves were being written."""

    stall: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    meanwhile: list[float] = field(default_factory=list)


class Training:
    """ConvMLP with AdamW at 128 pixels, as training holds it on a CPU (channels-last)."""

    def __init__(self, name: str, batch: int = 2) -> None:
        self.model = create_model(name).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.images = torch.randn(batch, 3, 128, 128).to(memory_format=torch.channels_last)
        self.step()

    def step(self, before_update: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Seconds of one step, and of `before_update` in it."""
        start = time.perf_counter()
        self.model(self.images).square().mean().backward()
        ready = time.perf_counter()
        before_update()
        waited = time.perf_counter() - ready
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start, waited

    def state(self) -> Groups:
        """Live weights and moments."""
        moments = {
            f"{name}/{slot}": self.optimizer.state[p][slot]
            for name, p in self.model.named_parameters()
            for slot in ("exp_avg", "exp_avg_sq")
        }
        return {"model": dict(self.model.state_dict()), "optimizer": moments}

    def changing(self) -> set[str]:
        """Names of the tensors that a forward pass changes."""
        return {name for name, _ in self.model.named_buffers()}


Save = Callable[[int], Callable[[], bool]]
"""Save step n; returns once the loop may go on, with a function that tells whether it's done."""


def platform_saver(training: Training, saver: AsyncCheckpointer) -> Save:
    """Ours, in the background; the copy ends before the next update of the weights."""

    def save(step: int) -> Callable[[], bool]:
        saver.save(Checkpoint(step, training.state(), {}), changing=training.changing())
        return lambda: any(event.kind == "committed" for event in saver.poll())

    return save


def torch_saver(training: Training, folder: Path) -> Save:
    """Plain torch.save, synced."""

    def save(step: int) -> Callable[[], bool]:
        folder.mkdir(exist_ok=True)
        torch.save(training.state(), folder / f"{step}.pt")

        def done() -> bool:
            _sync(folder / f"{step}.pt")
            (folder / f"{step - 1}.pt").unlink(missing_ok=True)
            return True

        return done

    return save


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def measure(
    training: Training, savers: Mapping[str, Save], settle: Callable[[], None], saves: int
) -> tuple[dict[str, Times], float]:
    """Times of each saver, and the median of the loop's undisturbed steps."""
    quiet = list[float]()
    times = {name: Times() for name in savers}
    for step in range(-1, saves):  # the first round warms up
        for name, save in savers.items():
            quiet += [training.step(settle)[0] for _ in range(BETWEEN_SAVES)]
            start = time.perf_counter()
            done = save(step + 1)
            stall = time.perf_counter() - start
            seconds, waited = training.step(settle)
            meanwhile = [seconds - waited]
            while not done():
                meanwhile.append(training.step(settle)[0])
            if step >= 0:
                times[name].stall.append(stall + waited)
                times[name].durable.append(time.perf_counter() - start)
                times[name].meanwhile += meanwhile
    return times, statistics.median(quiet)


def time_loads(loads: Mapping[str, Callable[[], Any]], times: Mapping[str, Times], rounds: int = 3) -> None:
    for _ in range(rounds):
        for name, action in loads.items():
            start = time.perf_counter()
            action()
            times[name].load.append(time.perf_counter() - start)


def touch(groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Read every page of what was loaded, as copying it to a model does."""
    for tensors in groups.values():
        for tensor in tensors.values():
            tensor.sum()


def ray_times(name: str, saves: int, folder: Path) -> Times:
    """Ray Train's own way on one worker: torch.save to a temporary folder, `ray.train.report`, local storage."""
    import ray
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def train(config: dict[str, Any]) -> None:
        import ray.train
        import torch

        torch.set_num_threads(config["threads"])
        groups, stalls = Training(config["name"]).state(), []
        for step in range(config["saves"] + 1):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=config["folder"]) as local:
                torch.save(groups, Path(local, "state.pt"))
                ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(local))
            stalls.append(time.perf_counter() - start)
        Path(config["folder"], "stalls").write_text("\n".join(map(str, stalls[1:])))

    # A local Ray that shares nothing with others on this machine, and sends this module's functions by value.
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False, address="local"
    )
    try:
        settings = {"name": name, "saves": saves, "folder": str(folder), "threads": torch.get_num_threads()}
        storage = RunConfig(
            name="bench", storage_path=str(folder), checkpoint_config=CheckpointConfig(num_to_keep=2)
        )
        result = TorchTrainer(
            train, train_loop_config=settings, scaling_config=ScalingConfig(num_workers=1), run_config=storage
        ).fit()
        stalls = [float(line) for line in (folder / "stalls").read_text().split()]
        times = Times(stall=stalls)
        for _ in range(3):
            start = time.perf_counter()
            with result.checkpoint.as_directory() as local:
                touch(torch.load(Path(local, "state.pt"), weights_only=True))
            times.load.append(time.perf_counter() - start)
        return times
    finally:
        ray.shutdown()


def table(times: Mapping[str, Times], quiet: float, size: int) -> str:
    """One line a contestant; ratios are against torch.save."""
    base = times["torch.save"]

    def shown(values: list[float], of: list[float], pick: Callable[[list[float]], float]) -> str:
        if not values:
            return "n/a"
        return f"{1e3 * pick(values):,.0f} ms ({pick(values) / pick(of):.2f})"

    lines = [
        f"State of {size / 1e6:,.0f} MB; undisturbed step {1e3 * quiet:.1f} ms. In brackets: against torch.save.",
        "",
        "| save | stall p50 | stall p99 | durable p50 | load p50 | step meanwhile p50 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in times.items():
        cells = [
            shown(found.stall, base.stall, statistics.median),
            shown(found.stall, base.stall, max),
            shown(found.durable, base.durable, statistics.median),
            shown(found.load, base.load, statistics.median),
            f"{1e3 * statistics.median(found.meanwhile):.1f} ms" if found.meanwhile else "n/a",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="convmlp_l")
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument(
        "--folder", type=Path, help="on the storage to measure; default: the temporary folder"
    )
    parser.add_argument("--no-ray", action="store_true")
    arguments = parser.parse_args()
    training = Training(arguments.model)
    size = sum(tensor.nbytes for tensors in training.state().values() for tensor in tensors.values())
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    load_average = os.getloadavg()[0]
    print(f"{platform.machine()}, {threads}, torch {torch.__version__}, load average {load_average:.1f}\n")
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        saver = AsyncCheckpointer(Checkpointer(folder / "ours", keep=2))
        saver.reserve(Checkpoint(0, training.state(), {}))
        savers: dict[str, Save] = {
            "torch.save": torch_saver(training, folder / "torch"),
            "this platform": platform_saver(training, saver),
        }
        times, quiet = measure(training, savers, saver.settle, arguments.saves)
        saver.close()
        ours = Checkpointer(folder / "ours")

        def load_ours() -> None:
            newest = ours.newest()
            assert newest is not None
            touch(load(newest).tensors)

        loads: dict[str, Callable[[], Any]] = {
            "torch.save": lambda: touch(
                torch.load(folder / "torch" / f"{arguments.saves}.pt", weights_only=True)
            ),
            "this platform": load_ours,
        }
        time_loads(loads, times)
        shutil.rmtree(folder / "ours")
        if not arguments.no_ray:
            times["Ray Train's report (its defaults)"] = ray_times(arguments.model, arguments.saves, folder)
        print(table(times, quiet, size))
        print("\nOurs verifies every byte by SHA-256 when it loads; p99 of so few saves is their maximum.")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
