"""Of `make bench-gpu`: is what the platform computes right on this device, and is a whole run as fast as its step?

Runs are those of `training.run` in this process: neither Ray nor MLflow is needed, whose records stay in the journal.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate_state import forget_accelerate
from gpu_steps import Row, Scale, engine_step, measured, warmed
from PIL import Image
from prepared import digits
from undrawn import without_drawing
from unsent import without_replayer

from convmlp_platform.config.load import parse_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import metric_history
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.run import RunResult, run
from convmlp_platform.training.step_plan import TrainState
from data_prep.config import OutputConfig, PrepareConfig
from data_prep.prepare import prepare

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    **{f"ZeRO-{stage}": {"strategy": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)},
}
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}
"""Largest relative difference from ddp's losses in fp32; a GPU adds in another order each time, and in TF32 nowhere."""
STEPS, HALF = 8, 4
PHOTO = (375, 500)


def at_hand(strategy: str) -> bool:
    """DeepSpeed's strategies need a package that a GPU host may lack."""
    return (
        STRATEGIES[strategy]["strategy"] != "deepspeed" or importlib.util.find_spec("deepspeed") is not None
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Within: runs keep to themselves what they say, draw nothing and send nothing."""
    with without_replayer(), without_drawing(), redirect_stdout(io.StringIO()):
        yield


def trained(
    values: Mapping[str, Any], callbacks: Sequence[Callback] = (), clock: PhaseClock | None = None
) -> RunResult:
    """The run of a job, in this process; as if it were the process's first."""
    forget_accelerate()
    job = parse_job(dict(values), "make bench-gpu")
    assert isinstance(job, TrainJob)
    with quietly():
        return run(job, callbacks, clock=clock)


def losses(folder: Path) -> list[float]:
    """Training losses by step, from the journal."""
    return [
        values["train/loss"] for _, values in metric_history(journal_path(folder)) if "train/loss" in values
    ]


# --- correctness ---------------------------------------------------------------------------------------------


def digits_job(
    root: Path, name: str, scale: Scale, *, engine: Mapping[str, Any], stop: int
) -> dict[str, Any]:
    """8 steps of the tiny network on scikit-learn's digits, cut after `stop`."""
    return {
        "kind": "train",
        "name": name,
        "model": {"name": "convmlp_tiny", "drop_path_rate": 0.1},
        "data": {"path": str(digits("webdataset")), "image_size": 32, "num_workers": 0},
        "augment": {"crop": "pad", "mixup": 0.2, "hflip": 0.0},
        "optimizer": {"lr": 1e-3},
        "training": {
            "steps": STEPS, "max_steps": stop, "global_batch_size": 32, "micro_batch_size": 16, "ema_decay": 0.9,
            "clip_grad_norm": 1.0, "log_every_steps": 1,
        },
        "eval": {"batch_size": 128},
        "engine": dict(engine),
        "checkpoint": {"path": str(root)},
        "launch": {"use_gpu": "auto" if scale.device.type == "cuda" else False},
    }  # fmt: skip


def correctness(root: Path, scale: Scale) -> Iterator[Row]:
    """Each strategy in each precision against ddp in fp32, then each state under each other strategy."""
    precisions = ("fp32",) if scale.tiny else ("fp32", "bf16", "fp16")
    if scale.device.type == "cpu":
        precisions = ("fp32",)

    def curve(name: str, strategy: str, precision: str, stop: int = STEPS) -> list[float]:
        engine = {**STRATEGIES[strategy], "precision": precision}
        trained(digits_job(root, name, scale, engine=engine, stop=stop))
        return losses(root / name)

    wanted = curve("reference", "ddp", "fp32")
    for strategy in STRATEGIES:
        for precision in precisions:
            what = f"{strategy} in {precision} = ddp in fp32"
            if not at_hand(strategy):
                yield {"check": what, "state": "deepspeed isn't installed"}
                continue
            found = curve(f"{strategy}-{precision}".lower(), strategy, precision)
            yield compared(what, found, wanted, TOLERANCE[precision])
    usable = [strategy for strategy in STRATEGIES if at_hand(strategy)]
    # Every second of ZeRO's stages shares its code with its neighbour.
    chosen = [name for name in usable if name not in ("ZeRO-1", "ZeRO-2")][: 2 if scale.tiny else None]
    for before in chosen:
        for after in chosen:
            name = f"{before}-to-{after}".lower()
            curve(name, before, "fp32", stop=HALF)
            found = curve(name, after, "fp32")
            yield compared(f"saved by {before}, resumed under {after}", found, wanted, TOLERANCE["fp32"])


def compared(what: str, found: Sequence[float], wanted: Sequence[float], tolerance: float) -> Row:
    """A row that says whether the losses agree, step by step."""
    if len(found) != len(wanted):
        return {"check": what, "state": f"FAILED: {len(found)} steps instead of {len(wanted)}"}
    off = max(abs(one / other - 1) for one, other in zip(found, wanted, strict=True))
    return {
        "check": what,
        "off": off,
        "tolerance": tolerance,
        "state": "right" if off <= tolerance else "FAILED",
    }


def synchronisations(scale: Scale) -> Iterator[Row]:
    """How often a step waits for the device: in the engine never, by `torch.cuda.set_sync_debug_mode`."""
    name = "convmlp_s"
    step, _ = engine_step(name, scale, compiled=False)
    warmed(step, scale)
    if scale.device.type == "cpu":
        yield {"check": f"{name}: synchronisations in a step", "state": "no GPU"}
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for _ in range(5):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in heard if "synchroniz" in str(warning.message)]
    places = sorted({f"{Path(warning.filename).name}:{warning.lineno}" for warning in found})
    told = "right" if not found else f"FAILED: {len(found) / 5:g} a step, in {', '.join(places[:4])}"
    yield {
        "check": f"{name}: synchronisations in a step",
        "off": len(found) / 5,
        "tolerance": 0,
        "state": told,
    }


# --- a whole run ---------------------------------------------------------------------------------------------


def photographs(root: Path, count: int, shape: tuple[int, int]) -> Path:
    """A prepared dataset of smooth random JPEGs in 10 classes, as large and as dear to decode as photographs."""
    images, target = root / "photographs", root / "photographs-prepared"
    draw = np.random.default_rng(0)
    for number in range(count):
        folder = images / f"class-{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
        smooth.save(folder / f"{number:05d}.jpg", quality=92)
    source = {"kind": "image_folder", "path": str(images), "val_fraction": 0.1}
    return prepared_from(source, target)


def prepared_from(source: Mapping[str, Any], target: Path) -> Path:
    """Shards of a source, WebDataset's form."""
    output = OutputConfig(path=target, formats=("webdataset",))
    with redirect_stdout(io.StringIO()):
        prepare(PrepareConfig(source=source, output=output), progress=lambda _line: None)  # type: ignore[arg-type]
    return target


class Stalls:
    """Hears a clock: seconds of each save's hold on training, up to step `until`: a profile is written after it. Less
    than a millisecond is a look at a save in progress."""

    def __init__(self, until: int) -> None:
        self.until, self.seconds = until, list[float]()
        self._since: float | None = None

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None:
        now = time.perf_counter()
        if phase is Phase.CHECKPOINT and self._since is None and step <= self.until:
            self._since = now
        elif phase is not Phase.CHECKPOINT and self._since is not None:
            if now - self._since > 1e-3:
                self.seconds.append(now - self._since)
            self._since = None

    def step_done(self, step: int, seconds: float) -> None: ...
    def bear(self, seconds: float) -> None: ...


class Marks(Callback):
    """The moment of each log line, by step."""

    def __init__(self) -> None:
        self.moments: dict[int, float] = {}

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        self.moments[state.step] = time.perf_counter()


def whole_job(root: Path, out: Path, scale: Scale, images: Path | None) -> Iterator[Row]:
    """ConvMLP-S on photographs from shards, with saves; against the step on pixels that lie on the device."""
    start, stop, every, profiled = (2, 8, 4, [9, 11]) if scale.tiny else (60, 260, 50, [264, 270])
    if images is not None:
        data = (
            images
            if (images / "manifest.json").is_file()
            else prepared_from(
                {"kind": "image_folder", "path": str(images), "val_fraction": 0.1}, root / "given-prepared"
            )
        )
    else:
        data = photographs(root, 40, (48, 64)) if scale.tiny else photographs(root, 2500, PHOTO)
    values = {
        "kind": "train",
        "name": "whole-job",
        "model": {"name": "convmlp_s"},
        "data": {
            "path": str(data), "image_size": scale.pixels, "shuffle_window": 256,
            "num_workers": 0 if scale.tiny else max((os.cpu_count() or 2) - 2, 1),
        },
        "optimizer": {"lr": 5e-4},
        "training": {
            "steps": profiled[1], "global_batch_size": scale.batch, "micro_batch_size": scale.batch,
            "log_every_steps": 1 if scale.tiny else 20,
        },
        "engine": {"precision": scale.precision},
        "eval": {"every_steps": 100_000, "batch_size": scale.batch},
        "checkpoint": {"path": str(root), "every_steps": every},
        "launch": {"use_gpu": "auto" if scale.device.type == "cuda" else False},
        "profile": {"steps": profiled},
    }  # fmt: skip
    stalls, marks = Stalls(stop), Marks()
    trained(values, [marks], PhaseClock(stalls))
    kept = next((root / "whole-job" / "profile").glob("steps-*/rank-*"))
    shutil.copytree(kept, out / "profile", dirs_exist_ok=True)
    yield {"figure": "profile of the whole job", "value": None, "unit": "in profile/"}
    seconds = (marks.moments[stop] - marks.moments[start]) / (stop - start)
    yield {"figure": "whole job, saves included", "value": scale.batch / seconds, "unit": "images/s"}
    step, _ = engine_step("convmlp_s", scale, compiled=False)
    warmed(step, scale)
    alone = measured({"step": step}, scale)["step"]
    yield {"figure": "its step on pixels on the device", "value": scale.batch / alone, "unit": "images/s"}
    yield {"figure": "whole job / step", "value": alone / seconds, "unit": "", "aim": 0.95}
    waited = [
        one["train/data_wait"] for at, one in metric_history(journal_path(root / "whole-job"))
        if "train/data_wait" in one and start < at <= stop
    ]  # fmt: skip
    yield {"figure": "waiting for data", "value": 100 * statistics.fmean(waited), "unit": "% of the time"}
    yield {
        "figure": "save stall, median",
        "value": 1e3 * statistics.median(stalls.seconds),
        "unit": "ms",
        "aim": 20,
    }
    yield {"figure": "save stall, longest", "value": 1e3 * max(stalls.seconds), "unit": "ms"}


class Reached(Callback):
    """Seconds of training when an evaluation was first as good as `target` (per cent)."""

    def __init__(self, clock: PhaseClock, target: float) -> None:
        self.clock, self.target, self.seconds = clock, target, None

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        if self.seconds is None and metrics["eval/top1"] >= self.target:
            self.seconds = training_seconds(self.clock)


def training_seconds(clock: PhaseClock) -> float:
    """In steps, the first included, and waiting for data."""
    now = clock.read()
    return sum(now[phase] for phase in (Phase.COMPILE, Phase.DATA, Phase.COMPUTE, Phase.UPDATE))


def cifar10(root: Path, scale: Scale, data: Path | None) -> Iterator[Row]:
    """CIFAR-10 from scratch to 94 % through the whole platform: ResNet-18 at 96 pixels, 16 epochs."""
    if scale.tiny:
        target, path = 20.0, digits("webdataset")
    elif data is None:
        yield {"figure": "CIFAR-10", "value": None, "unit": "not given: --cifar10 FOLDER"}
        return
    else:
        target = 94.0
        is_prepared = (data / "manifest.json").is_file()
        path = (
            data if is_prepared else prepared_from({"kind": "cifar10", "path": str(data)}, root / "cifar10")
        )
    pixels, epochs, batch = (32, 2, 64) if scale.tiny else (96, 16, 512)
    values = {
        "kind": "train",
        "name": "cifar10",
        "model": {"name": "convmlp_tiny" if scale.tiny else "resnet18"},
        "data": {
            "path": str(path), "image_size": pixels,
            "num_workers": 0 if scale.tiny else max((os.cpu_count() or 2) - 2, 1),
        },
        "augment": {"crop": "pad", "pad": pixels // 8, "hflip": 0.0 if scale.tiny else 0.5},
        "eval": {"every_epochs": 1 if scale.tiny else 4, "crop_pct": 1.0, "batch_size": 500},
        "loss": {"label_smoothing": 0.1},
        "optimizer": {"name": "adamw", "lr": 2e-3}
        if scale.tiny
        else {"name": "sgd", "lr": 0.4, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"warmup_epochs": epochs / 5},
        "training": {
            "epochs": epochs, "global_batch_size": batch, "micro_batch_size": batch, "ema_decay": 0.99,
            "log_every_steps": 20,
        },
        "engine": {"precision": scale.precision},
        "checkpoint": {"path": str(root)},
        "launch": {"use_gpu": "auto" if scale.device.type == "cuda" else False},
    }  # fmt: skip
    clock = PhaseClock()
    reached, began = Reached(clock, target), time.perf_counter()
    result = trained(values, [reached], clock)
    name = "digits (tiny)" if scale.tiny else "CIFAR-10"
    yield {
        "figure": f"{name}: top-1 at the end",
        "value": result.metrics["eval/top1"],
        "unit": "%",
        "aim": target,
    }
    yield {"figure": f"{name}: best top-1", "value": result.best["eval/top1"], "unit": "%"}
    yield {"figure": f"{name}: training until {target:g} %", "value": reached.seconds, "unit": "s", "aim": 60}
    yield {"figure": f"{name}: training in all", "value": training_seconds(clock), "unit": "s"}
    yield {"figure": f"{name}: from start to end", "value": time.perf_counter() - began, "unit": "s"}
