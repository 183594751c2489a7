"""Images per second: the forward pass alone, batch by batch, on images that lie on the device already."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convmlp.tasks.detection import DetectionTask
from convmlp.tasks.heads.anchors import pad_images
from convmlp_platform.config.evaluate_job import ThroughputSection
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.engine.engine import Engine
from convmlp_platform.evaluation.result import Hardware, Throughput, ThroughputRow


def measure(engine: Engine, images: Sequence[Any], section: ThroughputSection) -> Throughput:
    """Time the model as evaluation runs it: in evaluation mode, under the engine's precision and memory layout.

    A batch counts from the call to the end of its last kernel. Reading, decoding and copying to the device are left
    out; what a detector does with its scores (NMS) is in.

    Args:
        images: [3, H, W] each, some real ones of the split; repeated to fill a batch.
    """
    engine.task.eval()
    device = engine.world.device
    rows = []
    largest = (max(one.shape[-2] for one in images), max(one.shape[-1] for one in images))
    for size in section.batch_sizes:
        chosen = [images[place % len(images)] for place in range(size)]
        batch = torch.stack(chosen) if len({one.shape for one in chosen}) == 1 else chosen
        ready, _ = engine.to_device(_as_micro_batch(batch, size))
        if isinstance(ready, list) and not isinstance(engine.task, DetectionTask):  # which takes them so
            ready = pad_images(ready).tensors

        def forward(ready: Any = ready) -> None:
            with torch.inference_mode(), _autocast(engine):
                engine.model(ready)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        rows.append(_row(size, times(forward, section.warmup, section.batches)))
    return Throughput(precision=engine.options.precision, image_size=largest, rows=rows)


def _autocast(engine: Engine) -> torch.autocast:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(engine.options.precision, torch.float32)
    return torch.autocast(engine.world.device.type, dtype=dtype, enabled=dtype != torch.float32)


def times(work: Callable[[], None], warmup: int, count: int) -> list[float]:
    """Seconds that each of `count` calls takes, after `warmup` calls."""
    for _ in range(warmup):
        work()
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def _row(size: int, seconds: list[float]) -> ThroughputRow:
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return ThroughputRow(
        batch_size=size,
        batches=len(seconds),
        images_per_second=size / median,
        median_seconds=median,
        low_seconds=low,
        high_seconds=high,
    )


def _as_micro_batch(images: Any, size: int) -> MicroBatch:
    nothing = torch.zeros(size, dtype=torch.int64)
    return MicroBatch(images, nothing, nothing, nothing, nothing, nothing.bool(), 0)


def hardware_of(device: torch.device) -> Hardware:
    """Returns the hardware that computes: the GPU's or the processor's name, the threads, the host."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Hardware(
        device="cuda" if device.type == "cuda" else "cpu",
        name=name,
        threads=torch.get_num_threads(),
        host=socket.gethostname(),
    )


def _processor() -> str:
    """Linux tells it in /proc/cpuinfo only."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"
