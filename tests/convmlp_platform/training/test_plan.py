"""When things happen in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.training.plan import StepPlan

REPOSITORY = Path(__file__).parents[3]
IMAGENET = 1_281_167


def imagenet_plan() -> StepPlan:
    job = load_job(REPOSITORY / "jobs" / "pretrain_convmlp.yaml")
    assert isinstance(job, TrainJob)
    return StepPlan(job, IMAGENET)


def test_the_papers_schedule() -> None:
    """310 epochs of 1,251.1 steps; warm-up 5 epochs from 1e-4 to 5e-4; cosine to 1e-5 at 300; 10 of cool-down."""
    plan = imagenet_plan()
    assert plan.total_steps == 310 * IMAGENET // 1024
    assert plan.lr(0) == 1e-4
    assert plan.lr(5 * IMAGENET // 1024 + 1) == pytest.approx(5e-4, rel=1e-5)
    assert plan.lr(300 * IMAGENET // 1024 + 1) == 1e-5
    assert plan.lr(plan.total_steps - 1) == 1e-5


@given(samples=st.integers(16, 5000), epochs=st.integers(1, 12), every=st.integers(1, 5))
def test_each_epoch_ends_once(samples: int, epochs: int, every: int) -> None:
    base = imagenet_plan().job
    job = base.model_copy(
        update={
            "training": base.training.model_copy(update={"epochs": float(epochs), "global_batch_size": 16}),
            "schedule": base.schedule.model_copy(update={"cooldown_epochs": 0.0, "warmup_epochs": 0.0}),
            "eval": base.eval.model_copy(update={"every_epochs": every}),
        }
    )
    plan = StepPlan(job, samples)
    due = [step for step in range(1, plan.stop_step + 1) if plan.evaluates_after(step)]
    assert due[-1] == plan.stop_step
    ends = [-(-epoch * samples // 16) for epoch in range(every, epochs + 1, every)]
    assert set(due) == {step for step in ends if step <= plan.stop_step} | {plan.stop_step}
