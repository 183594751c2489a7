"""A training step as a run takes it: computed, agreed on, judged, and then updated or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convmlp_platform.config.sections.resilience import GuardSection
from convmlp_platform.engine.engine import Engine
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.training.guard.bad_steps import BadSteps
from convmlp_platform.training.guard.guard import Guard
from convmlp_platform.training.step import GuardedSteps, StepResult
from convmlp_platform.training.stop_request import StopRequest


def take_step(engine: Engine, micro_batches: Sequence[Any], *, step: int, lr: float) -> StepResult:
    """One step of this rank's micro-batches (collective). Its numbers must be right, or overflow fp16."""
    guard, nowhere = Guard(GuardSection()), Path("no-incidents")
    steps = GuardedSteps(
        engine, guard, BadSteps(engine, nowhere), PhaseClock(), StopRequest(), lambda first_bad: None
    )
    result = steps.take(micro_batches, step=step, lr=lr, attempt=1)
    assert result.bad is None, result.bad
    return result
