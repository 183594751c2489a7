"""The cost of a network, computed from a record's description of it, for records that don't state the cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.models.bundle import BundleSpec


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
