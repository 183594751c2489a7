"""The section of a training job that asks for a profile of some of its steps. Nothing in it is part of a run's
identity."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from convmlp_platform.config.sections.section import Section

MOST_STEPS = 100
"""A trace of ConvMLP-S has 3,000 to 5,000 events a step; a viewer bears some hundred thousand."""


class ProfileSection(Section):
    """The steps that are recorded operator by operator (torch.profiler), and by which ranks."""

    steps: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = Field(
        description="[FIRST, END]: from when FIRST steps are done until END are, so END - FIRST steps; a first step of "
        "a process is never typical: leave some out"
    )
    every_rank: bool = Field(False, description="a trace of each rank; by default rank 0's alone")

    @field_validator("steps")
    @classmethod
    def _rises(cls, steps: tuple[int, int]) -> tuple[int, int]:
        first, end = steps
        if first >= end:
            raise ValueError(
                f"must rise, e.g. [{first}, {first + 10}]: its end isn't one of the steps recorded"
            )
        if end - first > MOST_STEPS:
            raise ValueError(
                f"are {end - first} steps, whose trace no viewer opens: {MOST_STEPS} at most, "
                f"e.g. [{first}, {first + 10}]"
            )
        return steps
