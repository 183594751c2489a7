"""Lines of `convmlp check` on settings that make little sense for the dataset or for the length of the run. None is an
error: a run may want just that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from convmlp_platform.config.automatic import FEW_UPDATES
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.training.step_plan import StepPlan
from data_prep.dataset.index import read_index
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.storage.urls import local_path

_FEW_FROM_SCRATCH = 100
"""Updates of the weights."""
_SHARDS = 16
"""Of which image sizes are read; they are shuffled."""
_ENLARGED, _SMALLEST_SIZE = 1.5, 32
"""So many times its median shorter side an image may be enlarged unsaid, and always to what networks are made for."""
_WIDE, _WIDE_SHARE = 1.25, 0.1
"""Sides' ratio of an image that isn't nearly square, and the share of such that is worth a line."""


@dataclass(frozen=True)
class ImageSizes:
    """Height and width of stored images, in pixels, each of shape (n,); n is at least 1."""

    height: NDArray[np.int32]
    width: NDArray[np.int32]

    @property
    def median_short_side(self) -> int:
        """Pixels."""
        return int(np.median(np.minimum(self.height, self.width)))

    @property
    def share_not_square(self) -> float:
        """Of the images whose longer side is more than 1.25 times the shorter one."""
        longer, shorter = np.maximum(self.height, self.width), np.minimum(self.height, self.width)
        return float(np.mean(longer > _WIDE * shorter))


def image_sizes(job: TrainJob, manifest: DatasetManifest) -> ImageSizes | None:
    """Of the training images, from the indexes of some shards; None where these are not at hand."""
    folder, split = local_path(job.data.path), manifest.splits.get(job.data.train_split)
    shards = split.formats.get(job.data.format, []) if split else []
    if folder is None or not shards:
        return None
    with suppress(DataPrepError):
        taken = shards[:: -(-len(shards) // _SHARDS)]
        indexes = [read_index(Path(folder) / shard.index) for shard in taken]
        return ImageSizes(
            *(np.concatenate([getattr(one, side) for one in indexes]) for side in ("height", "width"))
        )
    return None


def recipe_line(job: TrainJob) -> str:
    """The values that hang on the number of images and the length of the run, given or `auto`."""
    training, schedule, section = job.training, job.schedule, job.eval
    warmup = (
        f"{schedule.warmup_steps:,} steps" if schedule.warmup_steps else f"{schedule.warmup_epochs:g} epochs"
    )
    every = f"{section.every_steps:,} steps" if section.every_steps else f"{section.every_epochs} epochs"
    parts = [
        f"lr {job.optimizer.lr:g} after {warmup} of warm-up",
        f"micro-batches of {training.micro_batch_size}",
        f"average of the weights {training.ema_decay:g}"
        if training.ema_decay
        else "no average of the weights",
        f"evaluated every {every if section.every_steps or (section.every_epochs or 1) > 1 else 'epoch'}",
    ]
    if job.tracking.register_as is not None:
        parts.append(f"registered as {job.tracking.register_as.name}")
    return f"recipe   {', '.join(parts)}"


def advice(job: TrainJob, manifest: DatasetManifest, model: nn.Module | None) -> Iterator[str]:
    """Each line begins with `advice`.

    Args:
        manifest: of the job's dataset.
        model: the job's, on any device; None where it can't be made.
    """
    split = manifest.splits.get(job.data.train_split)
    if split is None:
        return
    plan = StepPlan(job, split.num_samples)
    lines = [*_on_length(plan), *_on_schedule(plan), *_on_depth(plan, model)]
    if job.task.name == "classification" and (sizes := image_sizes(job, manifest)) is not None:
        lines += _on_sizes(job, sizes)
    yield from (f"advice   {line}" for line in lines)


def _on_length(plan: StepPlan) -> Iterator[str]:
    training, count, updates = plan.job.training, plan.num_samples, plan.total_steps
    if training.global_batch_size > count:
        yield (
            f"training.global_batch_size (={training.global_batch_size:,}) is more than the {count:,} images of the "
            "split: a step holds some of them twice; lower it"
        )
    if 0 < updates < _FEW_FROM_SCRATCH:
        yield (
            f"{updates:,} updates are few for training from scratch: lower training.global_batch_size, raise "
            f"{training.length}, or start from trained weights (model.init_from)"
        )
    if training.ema_decay is not None and 0 < updates * (1 - training.ema_decay) < 1:
        yield (
            f"training.ema_decay (={training.ema_decay:g}) averages over {1 / (1 - training.ema_decay):,.0f} updates, "
            f"more than the run's {updates:,}: {max(1 - 10 / updates, 0.1):.3g} averages over its last tenth"
        )


def _on_schedule(plan: StepPlan) -> Iterator[str]:
    training, schedule, updates = plan.job.training, plan.job.schedule, plan.total_steps
    warmup = schedule.warmup_steps or schedule.warmup_epochs * plan.steps_per_epoch
    if updates and warmup > updates / 2:
        yield (
            f"warm-up takes {warmup:,.0f} of {updates:,} updates, more than half: lower "
            f"schedule.warmup_{'steps' if schedule.warmup_steps else 'epochs'}"
        )
    cooldown = schedule.cooldown_epochs * plan.steps_per_epoch
    if updates and cooldown > updates / 2:
        yield (
            f"cool-down takes {cooldown:,.0f} of {updates:,} updates, more than the training before it "
            f"({training.length}): lower schedule.cooldown_epochs"
        )


def _on_depth(plan: StepPlan, model: nn.Module | None) -> Iterator[str]:
    # Ours and timm's alike, by name: importing timm takes seconds.
    rates = (
        [
            float(getattr(part, "drop_prob", 0) or 0)
            for part in model.modules()
            if type(part).__name__ == "DropPath"
        ]
        if model
        else []
    )
    if 0 < plan.total_steps < FEW_UPDATES and (rate := max(rates, default=0.0)) > 0:
        yield (
            f"stochastic depth (up to {rate:g}) leaves blocks out of {plan.total_steps:,} updates, which are few for "
            "it: --set model.drop_path_rate=0"
        )


def _on_sizes(job: TrainJob, sizes: ImageSizes) -> Iterator[str]:
    size, median = job.data.image_size, sizes.median_short_side
    if size > max(_ENLARGED * median, _SMALLEST_SIZE):
        yield (
            f"data.image_size (={size}) is more than the images have: half of them are no more than {median} px on "
            "their shorter side; enlarging them takes time and adds no detail"
        )
    if job.augment.crop != "random_resized" and sizes.share_not_square > _WIDE_SHARE:
        yield (
            f"augment.crop (={job.augment.crop}) squashes {sizes.share_not_square:.0%} of the images, which are not "
            "square, while evaluation cuts out their middle: use random_resized"
        )
