"""Further figures of an evaluation: ReaL labels, permuted pixels, images per second.

ImageNet ReaL (Beyer et al., "Are we done with ImageNet?", arXiv:2006.07159) has several right classes an image. The
Mixer paper's orders of pixels are shown to a finished model. Images per second are those of the forward pass alone,
batch by batch, on images that lie on the device already.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmlp.transforms.pixel_order import Order, instead_of, permute_pixels, pixel_order
from convmlp_platform.config.evaluate_job import PermutationSection, ThroughputSection
from convmlp_platform.errors import DataError
from convmlp_platform.evaluation.result import Hardware, Permutation, Permuted, Throughput, ThroughputRow
from convmlp_platform.tracking.provenance.frozen_environment import cpu_model
from data_prep.storage.json_files import DamagedJson, read_json

if TYPE_CHECKING:
    from convmlp.tasks.task import Metrics
    from convmlp_platform.data.reading.loader import MicroBatch
    from convmlp_platform.engine.engine import Engine

NUM_IMAGES, NUM_CLASSES = 50_000, 1000
_KEY = re.compile(r"ILSVRC2012_val_(\d{8})")

RealLabels = list[list[int]]
"""Of each image of ImageNet's validation split, in the order of its number: class numbers, none where it has none."""


def read_real_labels(path: Path) -> RealLabels:
    """The published `real.json`: 50,000 lists of class numbers, for ILSVRC2012_val_00000001 onwards.

    Raises:
        DataError: it is missing, unreadable or something else.
    """
    try:
        labels = read_json(path, object)
    except FileNotFoundError:
        raise DataError(
            f"evaluate.real_labels: no file {path}: it is real.json of github.com/google-research/reassessed-imagenet"
        ) from None
    except (OSError, DamagedJson) as error:
        raise DataError(f"evaluate.real_labels: {path} can't be read: {error}") from None
    if not isinstance(labels, list) or len(labels) != NUM_IMAGES:
        size = f"a list of {len(labels):,}" if isinstance(labels, list) else f"a {type(labels).__name__}"
        raise DataError(
            f"evaluate.real_labels: {path} must hold a list of {NUM_IMAGES:,} lists, it is {size}"
        )
    for place, one in enumerate(labels):
        if not isinstance(one, list) or not all(_is_class(number) for number in one):
            raise DataError(
                f"evaluate.real_labels: {path}: entry {place} ({str(one)[:60]}) must be a list of class numbers "
                f"0..{NUM_CLASSES - 1}"
            )
    return labels


def _is_class(number: object) -> bool:
    return type(number) is int and 0 <= number < NUM_CLASSES


def real_accuracy(
    labels: RealLabels, keys: Sequence[str], predicted: NDArray[np.integer]
) -> tuple[float, int]:
    """The share of images whose predicted class is among its labels, and of how many images: those with labels.

    Args:
        keys: the samples' names, which hold `ILSVRC2012_val_00000001` to `...50000`.
        predicted: shape (images,).

    Raises:
        DataError: an image is none of ImageNet's validation split, or none has a label.
    """
    right = counted = 0
    for key, choice in zip(keys, predicted.tolist(), strict=True):
        accepted = labels[place_of(key)]
        counted += bool(accepted)
        right += choice in accepted
    if not counted:
        raise DataError("evaluate.real_labels: none of the images has a ReaL label")
    return right / counted, counted


def place_of(key: str) -> int:
    """The 0-based place of an image of ImageNet's validation split.

    Raises:
        DataError: the sample's name is no such image's.
    """
    match = _KEY.search(key)
    number = int(match[1]) if match else 0
    if not 1 <= number <= NUM_IMAGES:
        raise DataError(
            f"evaluate.real_labels: sample {key!r} is no image of ImageNet's validation split "
            f"(ILSVRC2012_val_00000001 to {NUM_IMAGES:08d}): leave real_labels out for other datasets"
        )
    return number - 1


class PermutedPixels:
    """Computes each batch once more for every order.

    Args:
        fresh: makes the task's metrics.
        applied: the order that the images come in already, of a model that was trained so.
    """

    def __init__(
        self,
        engine: Engine,
        section: PermutationSection,
        fresh: Any,
        image_size: int,
        applied: Order | None,
    ) -> None:
        self._engine, self._section = engine, section
        self._rows = []
        for kind in section.kinds:
            order = pixel_order(
                kind, image_size, image_size, patch_size=section.patch_size, seed=section.seed
            )
            metrics = fresh().to(engine.world.device)
            self._rows.append(_Row(kind, instead_of(order, applied), metrics))

    @torch.no_grad()
    def update(self, batch: MicroBatch) -> None:
        """Take in a batch as it was read."""
        for row in self._rows:
            assert isinstance(batch.images, Tensor)
            images = permute_pixels(batch.images, row.order)
            _, outputs, targets = self._engine.eval_step(replace(batch, images=images))
            row.metrics.update(outputs, targets)

    def result(self) -> Permutation | None:
        """Of all batches; None where no order was asked for."""
        if not self._rows:
            return None
        rows = [
            Permuted(
                kind=row.kind,
                metrics={name: 100.0 * float(value) for name, value in row.metrics.compute().items()},
            )
            for row in self._rows
        ]
        return Permutation(patch_size=self._section.patch_size, seed=self._section.seed, rows=rows)


@dataclass(frozen=True)
class _Row:
    kind: Any
    order: Order
    metrics: Metrics


def measure(engine: Engine, images: Sequence[Any], section: ThroughputSection) -> Throughput:
    """Time the model as evaluation runs it: in evaluation mode, under the engine's precision and memory layout.

    A batch counts from the call to the end of its last kernel. Reading, decoding and copying to the device are left
    out; what a detector does with its scores (NMS) is in.

    Args:
        images: [3, H, W] each, some real ones of the split; repeated to fill a batch.
    """
    from convmlp.tasks.detection import DetectionTask
    from convmlp.tasks.heads.pyramid import pad_images

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
    from convmlp_platform.data.reading.loader import MicroBatch

    nothing = torch.zeros(size, dtype=torch.int64)
    return MicroBatch(images, nothing, nothing, nothing, nothing, nothing.bool(), 0)


def hardware_of(device: torch.device) -> Hardware:
    """Returns the hardware that computes: the GPU's or the processor's name, the threads, the host."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return Hardware(
        device="cuda" if device.type == "cuda" else "cpu",
        name=name,
        threads=torch.get_num_threads(),
        host=socket.gethostname(),
    )
