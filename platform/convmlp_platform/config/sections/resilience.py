"""The sections of a training job about what may go wrong: numbers, ranks that stand still, restarts. Nothing in them
is part of a run's identity: they may change between two starts of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from convmlp_platform.config.sections.section import PositiveInt, Section

Budget = Annotated[int, Field(ge=-1)]


class GuardSection(Section):
    """The treatment of a step whose loss or gradient is not finite, or whose loss jumps up.

    A bad step is computed once more first: faults of the hardware don't repeat. If it stays bad, the policy's stages
    follow one another: `skip` leaves the weights as they are and goes on; after `max_skips` in a row, or with
    `rollback` at once, the run goes back to its newest checkpoint from before the first of them; after
    `max_rollbacks`, or with `stop` at once, it ends with an error that names the samples.
    """

    on_non_finite: Literal["skip", "rollback", "stop"] = "skip"
    on_spike: Literal["ignore", "skip", "rollback", "stop"] = "ignore"
    spike_factor: float = Field(
        3.0, gt=1.0, description="a loss above this many times the median of the last spike_window is a spike"
    )
    spike_window: PositiveInt = Field(100, description="steps; until as many are done nothing is a spike")
    max_skips: PositiveInt = Field(3, description="bad steps in a row that are skipped before a rollback")
    max_rollbacks: int = Field(2, ge=0, description="rollbacks without passing the bad step, before the stop")


class HangSection(Section):
    """When a rank counts as stuck: it has made no progress for 3 times the median step and `grace_s`."""

    enabled: bool = True
    grace_s: float = Field(7.0, gt=0.0, description="seconds on top of three median steps")
    start_s: float = Field(
        900.0,
        gt=0.0,
        description="seconds that a start may take: imports, loading, the first (compiled) step",
    )


class RestartsSection(Section):
    """How many restarts each cause may take within `window_hours`; -1: no limit.

    A wrong job, a dataset that is damaged or missing, and code that fails in the same way twice are never restarted,
    whatever the budget.
    """

    preemption: Budget = Field(-1, description="nodes taken away with notice, workers told to stop (SIGTERM)")
    hardware: Budget = Field(20, description="workers or nodes that died")
    hang: Budget = Field(5, description="ranks that stood still")
    storage: Budget = Field(
        10,
        validation_alias=AliasChoices("storage", "data"),
        description="storage that couldn't be read or written for longer than it is asked again (2 minutes); `data` "
        "is its old name",
    )
    code: Budget = Field(1, description="errors raised by code")
    window_hours: float = Field(24.0, gt=0.0, description="restarts longer ago than this don't count")
