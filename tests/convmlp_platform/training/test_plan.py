"""When things happen in a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import eight_gpus
from timm.scheduler import CosineLRScheduler

from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.training.step_plan import StepPlan

REPOSITORY = Path(__file__).parents[3]
IMAGENET, COCO = 1_281_167, 118_287


def plan_of(name: str, samples: int, *overrides: str) -> StepPlan:
    job = load_job(REPOSITORY / "jobs" / f"{name}.yaml", overrides, of_machines=eight_gpus)
    assert isinstance(job, TrainJob)
    return StepPlan(job, samples)


def timms(epoch: int, *, lr: float, warmup_lr: float) -> float:
    """What timm's scheduler gives an epoch of the ConvMLP and CycleMLP authors' scripts."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = CosineLRScheduler(optimizer, 300, lr_min=1e-5, warmup_t=5, warmup_lr_init=warmup_lr)
    found: float = scheduler._get_lr(epoch)[0]
    return found


def test_the_convmlp_papers_schedule() -> None:
    """310 epochs of 1,251.1 steps, the rate of each as timm has it: 1e-4, 1.8e-4 ... 4.997e-4 after the warm-up."""
    plan = plan_of("pretrain_convmlp", IMAGENET)
    assert plan.total_steps == 310 * IMAGENET // 1024
    assert plan.lr(0) == plan.lr(1251) == 1e-4
    assert plan.lr(1252) == pytest.approx(1.8e-4)
    for epoch in range(310):
        first = -(-epoch * IMAGENET // 1024)
        last = -(-(epoch + 1) * IMAGENET // 1024) - 1
        wanted = pytest.approx(timms(epoch, lr=5e-4, warmup_lr=1e-4), rel=1e-9)
        assert plan.lr(first) == wanted and plan.lr(last) == wanted
    assert plan.lr(plan.total_steps - 1) == 1e-5


def test_the_cyclemlp_papers_schedule_is_an_epoch_late() -> None:
    """Their script steps the scheduler with the number of the epoch that has ended: two epochs have the first rate."""
    plan = plan_of("pretrain_cyclemlp", IMAGENET)
    assert plan.total_steps == 300 * IMAGENET // 1024
    for epoch in range(300):
        wanted = timms(max(0, epoch - 1), lr=1e-3, warmup_lr=1e-6)
        assert plan.lr(-(-epoch * IMAGENET // 1024)) == pytest.approx(wanted, rel=1e-9)


def test_mmdetections_1x_schedule() -> None:
    """12 epochs; a tenth after 8 and after 11; 500 steps of warm-up from a thousandth."""
    plan = plan_of("detect_retinanet", COCO)
    assert plan.total_steps == 12 * COCO // 16
    assert plan.lr(0) == pytest.approx(1e-7)
    assert plan.lr(250) == pytest.approx(1e-4 * (1 - 0.5 * 0.999))
    assert plan.lr(500) == 1e-4
    drops = [-(-epoch * COCO // 16) for epoch in (8, 11)]
    assert [plan.lr(step - 1) for step in drops] == [1e-4, pytest.approx(1e-5)]
    assert [plan.lr(step) for step in drops] == [pytest.approx(1e-5), pytest.approx(1e-6)]


def test_mmsegmentations_40k_schedule() -> None:
    plan = plan_of("segment_semantic_fpn", 20_210)
    assert (plan.total_steps, plan.stop_step) == (40_000, 40_000)
    for step in (0, 1, 20_000, 39_999):
        assert plan.lr(step) == pytest.approx(2e-4 * (1 - step / 40_000) ** 0.9)
    assert [step for step in range(1, 40_001) if plan.evaluates_after(step)] == [*range(4000, 40_001, 4000)]


def test_mixers_fine_tuning_schedule() -> None:
    plan = plan_of("transfer_mixer_cifar10", 50_000)
    assert plan.total_steps == 10_000 and plan.total_epochs == 102.4
    assert plan.lr(0) == 0 and plan.lr(250) == pytest.approx(0.015) and plan.lr(500) == pytest.approx(0.03)
    assert plan.lr(5250) == pytest.approx(0.015)


def test_mixers_pre_training_schedule() -> None:
    plan = plan_of("pretrain_mixer_b16", IMAGENET)
    assert plan.total_steps == 300 * IMAGENET // 4096
    assert plan.lr(5000) == pytest.approx(5e-4) and plan.lr(10_000) == pytest.approx(1e-3)
    middle = (10_000 + plan.total_steps) / 2
    assert plan.lr(round(middle)) == pytest.approx(5e-4, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 300), samples=st.integers(16, 5000), every=st.integers(1, 40))
def test_a_run_counted_in_steps(steps: int, samples: int, every: int) -> None:
    """Has just so many, whatever the dataset's size; a cool-down by epochs comes on top."""
    overrides = (
        f"training.steps={steps}",
        "training.epochs=null",
        f"eval.every_steps={every}",
        "eval.every_epochs=null",
        "training.global_batch_size=16",
        "training.micro_batch_size=16",
        "launch.num_workers=1",
        "schedule.warmup_epochs=0",
    )
    plan = plan_of("pretrain_convmlp", samples, "schedule.cooldown_epochs=0", *overrides)
    assert plan.total_steps == plan.stop_step == steps
    due = [step for step in range(steps + 1) if plan.evaluates_after(step)]
    assert set(due) == {*range(every, steps + 1, every), steps}
    cooled = plan_of("pretrain_convmlp", samples, "schedule.cooldown_epochs=2", *overrides)
    assert cooled.total_steps == steps + 2 * samples // 16
    assert cooled.lr(cooled.total_steps) == 1e-5


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(16, 5000), epochs=st.integers(1, 12), every=st.integers(1, 5))
def test_each_epoch_ends_once(samples: int, epochs: int, every: int) -> None:
    base = plan_of("pretrain_convmlp", IMAGENET).job
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
