"""The sections of a training job that are its recipe: augmentation, loss, optimizer, schedule, length, evaluation.

A section checks its own values; combinations of sections are checked in `config.schema`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from convmlp_platform.config.sections.section import PositiveInt, Probability, Section, also_auto


class AugmentSection(Section):
    """The augmentation of a training image, and of a batch of them. Default: nothing but crop and flip."""

    repeats: PositiveInt = Field(
        1,
        description="repeated augmentation: so many differently augmented views of each sample in a step; an epoch "
        "is as many views as there are samples",
    )
    crop: Literal["random_resized", "pad", "none"] = Field(
        "random_resized", description="pad: mirror the edges outwards, then a random crop"
    )
    scale: tuple[float, float] = Field(
        (0.08, 1.0), description="share of the area a random-resized crop takes"
    )
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="aspect ratio of a random-resized crop")
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    pad: int = Field(4, ge=0, description="pixels added on each side by crop: pad")
    hflip: Probability = 0.5
    color_jitter: float = Field(0.0, ge=0.0)
    rand_augment: str | None = Field(None, description="timm's notation, e.g. rand-m9-mstd0.5-inc1")
    random_erasing: Probability = 0.0
    mixup: float = Field(0.0, ge=0.0, description="alpha of mixup; 0 switches it off")
    cutmix: float = Field(0.0, ge=0.0, description="alpha of cutmix; 0 switches it off")
    mix_prob: Probability = Field(1.0, description="chance that a micro-batch is mixed at all")
    mix_switch_prob: Probability = Field(0.5, description="chance of cutmix where both are on")
    permute: Literal["none", "patches", "pixels"] = Field(
        "none",
        description="pixels in another order, the same for every image, in training and evaluation (the Mixer paper's "
        "experiment): patches and, alike, the pixels of each; or all pixels",
    )
    permute_patch: PositiveInt = Field(16, description="side of a patch in pixels, with permute: patches")
    permute_seed: int = Field(0, ge=0, description="of the order of pixels")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed (mixup or cutmix)."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0


class EvalSection(Section):
    """How held-out images are prepared and how often they are looked at."""

    every_epochs: PositiveInt | None = Field(
        None,
        description="look after so many epochs; default: after each, unless every_steps is given; auto: ten times",
        json_schema_extra=also_auto,
    )
    every_steps: PositiveInt | None = Field(None, description="look after so many steps, in place of epochs")
    batch_size: PositiveInt | None = Field(
        None, description="images a forward pass; default: training.micro_batch_size"
    )
    crop_pct: float = Field(
        0.875, gt=0.0, le=1.0, description="share of the resized short side that the centre crop keeps"
    )
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    @model_validator(mode="after")
    def _one_interval(self) -> EvalSection:
        if self.every_epochs is not None and self.every_steps is not None:
            raise ValueError(
                f"every_epochs (={self.every_epochs}) and eval.every_steps (={self.every_steps}) are both given: "
                "leave one out"
            )
        return self


class LossSection(Section):
    """Cross entropy and its softening."""

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)


class OptimizerSection(Section):
    """The optimizer, by timm's names."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(
        gt=0.0,
        description="peak learning rate for the global batch; never rescaled behind your back; auto: by what the "
        "weights start from",
        json_schema_extra=also_auto,
    )
    weight_decay: float = Field(0.05, ge=0.0)
    decay: Literal["weights", "all"] = Field(
        "weights", description="what weight_decay is of; weights: 1-D tensors and biases are left alone"
    )
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0.0)
    momentum: Probability = Field(0.9, description="sgd only")
    nesterov: bool = Field(True, description="sgd only")


class ScheduleSection(Section):
    """Learning rate as a function of samples seen."""

    name: Literal["cosine", "linear", "poly", "step", "constant"] = "cosine"
    moves: Literal["step", "epoch"] = Field(
        "step", description="epoch: the rate, warm-up included, stands still within an epoch"
    )
    warmup_epochs: float = Field(0.0, ge=0.0)
    warmup_steps: int = Field(
        0,
        ge=0,
        description="warm-up counted in steps, in place of warmup_epochs; auto: a tenth of the run",
        json_schema_extra=also_auto,
    )
    warmup_lr: float = Field(0.0, ge=0.0, description="learning rate at the first step")
    decay_from: Literal["warmup", "start"] = Field(
        "warmup",
        description="where the decay begins to count: after the warm-up, or at the start, so that the warm-up hides "
        "its beginning (timm's default)",
    )
    min_lr: float = Field(0.0, ge=0.0, description="learning rate at the end of the decay")
    power: float = Field(1.0, gt=0.0, description="poly only: of what is left of the linear decay")
    milestones: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        (), description="step only: epochs after which the rate is multiplied by gamma"
    )
    gamma: float = Field(0.1, gt=0.0, le=1.0, description="step only")
    cooldown_epochs: float = Field(0.0, ge=0.0, description="epochs at min_lr, added after training.epochs")
    delay_epochs: float = Field(
        0.0, ge=0.0, description="all of the above comes so much later, the first rate held meanwhile"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ScheduleSection:
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                f"warmup_epochs (={self.warmup_epochs:g}) and schedule.warmup_steps (={self.warmup_steps}) are both "
                "given: leave one out"
            )
        if self.name == "step" and not self.milestones:
            raise ValueError("milestones must be given where schedule.name is step, e.g. [8, 11]")
        if self.name != "step" and self.milestones:
            raise ValueError(
                f"milestones (={list(self.milestones)}) is for schedule.name: step, but name is {self.name}"
            )
        if any(late <= early for early, late in pairwise(self.milestones)):
            raise ValueError(f"milestones (={list(self.milestones)}) must rise")
        if self.name == "step" and self.cooldown_epochs:
            raise ValueError(
                f"cooldown_epochs (={self.cooldown_epochs:g}): schedule.name: step has no end to cool down from; "
                "raise training.epochs"
            )
        return self


class TrainingSection(Section):
    """How long, and how large a step is."""

    epochs: float | None = Field(
        None,
        gt=0.0,
        description="length of the run; or give training.steps; auto: by the number of images",
        json_schema_extra=also_auto,
    )
    steps: PositiveInt | None = Field(
        None, description="length of the run in optimizer steps; or give training.epochs"
    )
    max_steps: PositiveInt | None = Field(
        None, description="stop after this many steps; the schedule still spans `epochs` or `steps`"
    )
    global_batch_size: PositiveInt = Field(
        description="samples in one optimizer step, over all workers; auto: by the number of images",
        json_schema_extra=also_auto,
    )
    micro_batch_size: PositiveInt = Field(
        description="samples in one forward pass; BatchNorm and mixup see just these; auto: up to 64",
        json_schema_extra=also_auto,
    )
    clip_grad_norm: float | None = Field(
        None, gt=0.0, description="maximum L2 norm of the gradient of a step"
    )
    ema_decay: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="keep an average of the weights, without the initial ones, and evaluate that; auto: by the length "
        "of the run",
        json_schema_extra=also_auto,
    )
    log_every_steps: PositiveInt = 10

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches in one optimizer step, over all workers."""
        return self.global_batch_size // self.micro_batch_size

    @property
    def length(self) -> str:
        """The field that gives the run's length, and its value: `training.epochs (=300)`."""
        if self.steps is not None:
            return f"training.steps (={self.steps})"
        return f"training.epochs (={self.epochs:g})"

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSection:
        if self.epochs is None and self.steps is None:
            raise ValueError("epochs or training.steps must say how long the run is: give one of them")
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs (={self.epochs:g}) and training.steps (={self.steps}) are both given: leave one out "
                "(training.max_steps ends a run early)"
            )
        return self

    @model_validator(mode="after")
    def _micro_divides_global(self) -> TrainingSection:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size (={self.global_batch_size}) must be a multiple of "
                f"micro_batch_size (={self.micro_batch_size})"
            )
        return self
