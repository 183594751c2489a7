"""The file of a sweep (`kind: sweep`): a training job, and what is to be varied in it."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from convmlp_platform.config.sections.execution import LaunchSection
from convmlp_platform.config.sections.section import Name, PositiveInt, Section

_MAX_TRIALS = 10_000
DRAWS = {
    "uniform": "[from, to]",
    "loguniform": "[from, to]",
    "randint": "[from, to]",
    "choice": "[value, ...]",
}
"""Ways to draw a value, and what each takes; randint draws whole numbers, both ends included."""


class SweepVariant(Section):
    """One of the things that are compared."""

    name: Name = Field(description="the trial's name, in the table and of its run")
    set: dict[str, Any] = Field(
        default_factory=dict, description="dotted name of the job: value, e.g. {model.name: convmlp_s}"
    )


class SchedulerSection(Section):
    """The rule by which trials may train to their end."""

    name: Literal["fifo", "asha"] = Field(
        "fifo",
        description="fifo: all; asha: after grace_epochs, and each reduction times as many, only the best 1/reduction "
        "of those that came as far (Li et al. 2020)",
    )
    grace_epochs: float = Field(1.0, gt=0.0, description="asha: no trial is stopped before this")
    reduction: float = Field(3.0, gt=1.0, description="asha: of so many trials one goes on")


class SweepJob(Section):
    """Train one job in many settings, and compare what comes of them. Nothing is registered: the best trial's run
    holds its model."""

    kind: Literal["sweep"]
    name: Name = Field(description="the sweep's name; starting it again goes on with it")
    job: dict[str, Any] = Field(
        description="the training job: the path of its file from this one's folder, or its values",
        json_schema_extra={"type": ["object", "string"]},
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="dotted name: value, laid over the job in every trial"
    )
    variants: tuple[SweepVariant, ...] = Field((), description="settings with names; each is tried")
    space: dict[str, Any] = Field(
        default_factory=dict,
        description="dotted name: a list, each value of which is tried with all others, or one of "
        + ", ".join(f"{{{kind}: {takes}}}" for kind, takes in DRAWS.items()),
    )
    samples: PositiveInt = Field(1, description="draws from `space` for each variant and point of the grid")
    seed: int = Field(0, ge=0, description="of the draws")
    metric: str | None = Field(
        None, description="that decides, e.g. eval/loss; default: the task's own, e.g. eval/top1"
    )
    mode: Literal["max", "min"] = Field("max", description="whether a larger or smaller metric is better")
    scheduler: SchedulerSection = SchedulerSection()
    max_concurrent: PositiveInt | None = Field(
        None, description="trials at a time; default: as many as the cluster has room for"
    )
    launch: LaunchSection | None = Field(None, description="takes the place of the job's launch section")

    def resolved(self) -> SweepJob:
        """The job as it is: its trials' paths are theirs."""
        return self

    @model_validator(mode="after")
    def _makes_sense(self) -> SweepJob:
        problems = [line for name, values in self.space.items() for line in _space_problems(name, values)]
        if not self.variants and not self.space:
            problems.append("variants: empty, and so is space: nothing is varied")
        names = [variant.name for variant in self.variants]
        problems += [
            f"variants: {name} is named twice" for name in sorted(set(names)) if names.count(name) > 1
        ]
        grid = [len(values) for values in self.space.values() if isinstance(values, list)]
        if (trials := math.prod(grid) * self.samples * max(1, len(self.variants))) > _MAX_TRIALS:
            problems.append(f"space: these are {trials:,} trials; a sweep has {_MAX_TRIALS:,} at most")
        drawn = any(isinstance(values, dict) for values in self.space.values())
        if self.samples > 1 and not drawn:
            problems.append(
                f"samples: {self.samples} would all be alike: nothing in space is drawn from a range"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _space_problems(name: str, values: Any) -> list[str]:
    where, forms = f"space.{name}", ", ".join(f"{{{kind}: {takes}}}" for kind, takes in DRAWS.items())
    if isinstance(values, list):
        return [] if values else [f"{where}: the list of values is empty"]
    if not isinstance(values, dict) or len(values) != 1 or next(iter(values)) not in DRAWS:
        return [f"{where}: must be a list of values or one of {forms} (got {values!r})"]
    kind, given = next(iter(values.items()))
    if kind == "choice":
        return [] if isinstance(given, list) and given else [f"{where}.choice: must be a list of values"]
    number = int if kind == "randint" else (int, float)
    if (
        not isinstance(given, list)
        or len(given) != 2
        or any(isinstance(end, bool) or not isinstance(end, number) for end in given)
    ):
        what = "whole numbers" if kind == "randint" else "numbers"
        return [f"{where}.{kind}: must be [from, to], two {what} (got {given!r})"]
    low, high = given
    if low > high or (kind == "loguniform" and low <= 0):
        return [f"{where}.{kind}: must rise{', from above 0' if kind == 'loguniform' else ''} (got {given})"]
    return []
