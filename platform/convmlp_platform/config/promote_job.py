"""The sections of a promotion (`kind: promote`): candidate, champion, images and rules."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from convmlp_platform.config.evaluate_job import (
    EvaluatedDataSection,
    EvaluateJob,
    EvaluateLaunchSection,
    EvaluateOutputSection,
    precision_problems,
)
from convmlp_platform.config.paths import resolve
from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.config.sections.section import Name, PositiveInt, Section


class PromotedModelSection(Section):
    """A registered model and two of its versions."""

    name: Name = Field(description="of the registered model")
    candidate: str = Field(
        "candidate",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="an alias, or a version's number; training sets the alias candidate",
    )
    alias: Name = Field("champion", description="the alias that it is about; its holder is the champion")


class MeasureSection(Section):
    """How both models are computed."""

    batch_size: PositiveInt = Field(64, description="images a forward pass")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="fp16 needs a GPU")
    channels_last: bool = True
    latency_batches: int = Field(
        0, ge=0, description="forward passes of one image that are timed, after 3 others; 0: none"
    )


class RulesSection(Section):
    """What a candidate must be to take the alias. Percentages are points of the task's metric."""

    require: Literal["better", "not_worse"] = Field(
        "better",
        description="better: by more than chance, and by at least margin; not_worse: at `confidence`, by no more than "
        "margin",
    )
    margin: float = Field(0.0, ge=0.0, le=100.0, description="points")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="of tests and intervals")
    max_class_loss: float = Field(10.0, ge=0.0, description="points that a class may lose, beyond chance")
    max_calibration_loss: float = Field(
        5.0, ge=0.0, description="points by which the expected calibration error may grow"
    )
    max_latency_ms: float | None = Field(
        None, gt=0.0, description="median of a forward pass of one image; needs evaluate.latency_batches"
    )
    max_latency_ratio: float | None = Field(None, gt=0.0, description="of that median to the champion's")
    max_seen_share: float = Field(
        0.01,
        ge=0.0,
        le=1.0,
        description="share of the images that the candidate may have been trained on; those are left out for both",
    )
    allow_unknown_training_data: bool = Field(
        False, description="judge a candidate although nobody knows what it was trained on"
    )


class PromoteJob(Section):
    """Measure candidate and champion afresh on one split; move the alias if the rules say so, on record either way."""

    kind: Literal["promote"]
    name: Name = Field(description="of the record's folder, and of the run in MLflow")
    model: PromotedModelSection
    data: EvaluatedDataSection
    evaluate: MeasureSection = MeasureSection()
    rules: RulesSection = RulesSection()
    output: EvaluateOutputSection = EvaluateOutputSection(path="promotions")
    tracking: TrackingTarget = TrackingTarget()
    launch: EvaluateLaunchSection = EvaluateLaunchSection()

    def resolved(self) -> PromoteJob:
        """The job with paths that hold from any folder of this machine.

        Raises:
            ConfigError: a path can't be one.
        """
        data = self.data.model_copy(
            update={
                "path": resolve(self.data.path, "data.path"),
                "cache_dir": resolve(self.data.cache_dir, "data.cache_dir"),
            }
        )
        output = self.output.model_copy(update={"path": resolve(self.output.path, "output.path")})
        return self.model_copy(update={"data": data, "output": output})

    def evaluation_of(self, version: str) -> EvaluateJob:
        """The evaluation of one version, as its bundle says it is to be used."""
        measured = self.evaluate
        return EvaluateJob.model_validate(
            {
                "kind": "evaluate",
                "name": self.name,
                "model": {"from": f"models:/{self.model.name}/{version}"},
                "data": self.data.model_dump(),
                "evaluate": {
                    "batch_size": measured.batch_size,
                    "precision": measured.precision,
                    "channels_last": measured.channels_last,
                    "throughput": {
                        "batch_sizes": [1] if measured.latency_batches else [],
                        "batches": measured.latency_batches or 1,
                    },
                },
                "output": self.output.model_dump(),
                "tracking": self.tracking.model_dump(),
                "launch": self.launch.model_dump(),
            }
        )

    @model_validator(mode="after")
    def _combinations(self) -> PromoteJob:
        problems = []
        limits = [
            name for name in ("max_latency_ms", "max_latency_ratio") if getattr(self.rules, name) is not None
        ]
        if limits and not self.evaluate.latency_batches:
            problems.append(
                f"rules.{limits[0]}: set evaluate.latency_batches, e.g. to 50: else nothing is timed"
            )
        if self.model.candidate == self.model.alias:
            problems.append(f"model.candidate (={self.model.candidate}) is model.alias: name another version")
        problems += precision_problems(self.evaluate.precision, self.launch)
        if problems:
            raise ValueError("\n".join(problems))
        return self
