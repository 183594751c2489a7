"""One line of a comparison: what the records say of one model, and what it costs where they don't say it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.task_section import BEST_METRICS
from convmlp_platform.errors import ConfigError
from convmlp_platform.models.bundle import BundleSpec

# A lower value of these is better.
_LOWER = ("loss",)


@dataclass(frozen=True)
class Compared:
    """A model and its figures; None and missing names: no record says so.

    Args:
        label: to be told by. kind: what the record is: run, mlflow, registry, bundle or evaluation.
        source: what exactly it is. model: the network's name. task: see `config.sections.task_section`.
        digest: of the dataset that the metrics were measured on. split: of it, where the record says.
        metrics: per cent (loss: nats), of the best evaluation. last: of a training run's last evaluation.
        parameters, macs: of one image of `image_size` pixels, one side.
        images_per_second: of training, all workers together. forward_per_second: of evaluation, the fastest batch size.
        epochs: done. seconds: that the run, or the evaluation, took.
        counted: what of parameters and macs no record said, so that it was counted by making the network again.
    """

    label: str
    kind: str
    source: str
    model: str
    task: str
    dataset: str | None = None
    digest: str | None = None
    split: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    macs: int | None = None
    image_size: int | None = None
    images_per_second: float | None = None
    forward_per_second: float | None = None
    epochs: float | None = None
    seconds: float | None = None
    counted: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The network's name without its size: convmlp, mixer, cyclemlp, resnet, regnety, vit..."""
        found = re.match(r"[a-z]+", self.model.lower())
        return found.group() if found else self.model

    @property
    def best_metric(self) -> str:
        """By which models of its task are compared."""
        return BEST_METRICS[self.task]

    def to_dict(self) -> dict[str, Any]:
        """In plain values, for JSON."""
        return asdict(self) | {"family": self.family}


def with_cost(found: Compared, network: Network | None) -> Compared:
    """The same with parameters and MACs, where it had none and the network is known well enough to be made again."""
    missing = tuple(name for name in ("parameters", "macs") if getattr(found, name) is None)
    if not missing or network is None:
        return found
    try:
        parameters, macs = network.cost()
    except ConfigError:
        return found
    if found.parameters not in (None, parameters):
        return found  # the record speaks of another network than this release would make
    return replace(found, parameters=parameters, macs=found.macs or macs, counted=missing)


@dataclass(frozen=True)
class Network:
    """All it takes to make a model again, weights apart. `image_size`: pixels, one side."""

    name: str
    num_classes: int
    image_size: int
    task: str = "classification"
    options: dict[str, Any] = field(default_factory=dict)
    pyramid_channels: int = 256
    anchor_scale: float | None = None

    @classmethod
    def of_bundle(cls, spec: BundleSpec) -> Network:
        """Of a bundle's model."""
        own = spec.task.model_dump(include={"pyramid_channels", "anchor_scale"})
        return cls(spec.model, spec.num_classes, spec.image_size, spec.task.name, dict(spec.options), **own)

    @classmethod
    def of_job(cls, job: TrainJob, num_classes: int) -> Network:
        """Of the model that a job trains."""
        return cls(
            job.model.name,
            num_classes,
            job.data.image_size,
            job.task.name,
            dict(job.model.options),
            job.task.pyramid_channels,
            job.task.anchor_scale,
        )

    def cost(self) -> tuple[int, int]:
        """Parameters, and multiply-accumulates of one square image, as `convmlp.model_cost` counts them.

        Raises:
            ConfigError: this release makes no such network.
        """
        from convmlp.model_cost import count_parameters, count_task_macs

        try:
            model = self._made()
            return count_parameters(model), count_task_macs(model, self.image_size)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"{self.name}: can't be made again to count what it costs: {error}") from None

    def _made(self) -> Any:
        from convmlp import create_model
        from convmlp.tasks.heads import create_dense_model

        if self.task == "classification":
            return create_model(self.name, self.num_classes, image_size=self.image_size, **self.options)
        return create_dense_model(
            self.task,
            self.name,
            self.num_classes,
            pyramid_channels=self.pyramid_channels,
            anchor_scale=self.anchor_scale,
            **self.options,
        )


def is_lower_better(metric: str) -> bool:
    """Whether a lower value is the better one."""
    return metric.endswith(_LOWER)


def metric_name(text: str) -> str:
    """`eval/top1` and `top1` are the same."""
    return text.removeprefix("eval/")
