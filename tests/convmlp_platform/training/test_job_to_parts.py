"""Each setting of a job reaches the part that it is for, and no other one: all values here are different."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convmlp.tasks.classification import create_mixing
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.distributed import World
from convmlp_platform.engine.types import EngineOptions
from convmlp_platform.training.build import build_task, parts
from convmlp_platform.training.step_plan import StepPlan


def job_with(**sections: dict[str, Any]) -> TrainJob:
    values: dict[str, Any] = {
        "kind": "train",
        "name": "x",
        "seed": 5,
        "model": {"name": "convmlp_tiny"},
        "data": {"path": "d", "image_size": 32},
        "optimizer": {"lr": 0.001},
        "training": {"epochs": 5, "global_batch_size": 64, "micro_batch_size": 16},
    }
    return TrainJob.model_validate(
        values | {name: values.get(name, {}) | given for name, given in sections.items()}
    )


class Manifest:
    """What the builders ask of a classification dataset."""

    task, num_classes, mean, std = "classification", 10, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


MIXING = {"mixup": 0.2, "cutmix": 0.9, "prob": 0.8, "switch_prob": 0.3, "label_smoothing": 0.05}


def test_mixing_is_the_jobs() -> None:
    augment = {"mixup": 0.2, "cutmix": 0.9, "mix_prob": 0.8, "mix_switch_prob": 0.3}
    job = job_with(augment=augment, loss={"label_smoothing": 0.05})
    task: Any = build_task.build_task(job, Manifest())  # type: ignore[arg-type]
    wanted, images, labels = create_mixing(10, **MIXING), torch.randn(8, 3, 8, 8), torch.arange(8)
    assert wanted is not None
    for seed in range(40):
        np.random.seed(seed)
        mixed, targets = wanted(images.clone(), labels)
        np.random.seed(seed)
        found_mixed, found_targets = task.mixing(images.clone(), labels)
        assert torch.equal(found_mixed, mixed) and torch.equal(found_targets, targets)
    plain: Any = build_task.build_task(job_with(loss={"label_smoothing": 0.05}), Manifest())  # type: ignore[arg-type]
    assert (plain.mixing, plain.label_smoothing) == (None, 0.05)


OPTIMIZERS = [
    (
        {"name": "adamw", "lr": 0.003, "weight_decay": 0.07, "betas": (0.8, 0.95), "eps": 1e-5},
        {"lr": 0.003, "betas": (0.8, 0.95), "eps": 1e-5},
    ),
    ({"name": "sgd", "lr": 0.02, "weight_decay": 0.07, "momentum": 0.6}, {"momentum": 0.6, "nesterov": True}),
    (
        {"name": "sgd", "lr": 0.02, "weight_decay": 0.07, "momentum": 0.6, "nesterov": False},
        {"momentum": 0.6, "nesterov": False},
    ),
]


@pytest.mark.parametrize(("section", "wanted"), OPTIMIZERS)
def test_the_optimizer_is_the_jobs(section: dict[str, Any], wanted: dict[str, Any]) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    optimizer = parts.build_optimizer(job_with(optimizer=section), module)
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay_of == {
        id(module[0].weight): 0.07, id(module[0].bias): 0.0, id(module[1].weight): 0.0, id(module[1].bias): 0.0,
    }  # fmt: skip
    for group in optimizer.param_groups:
        assert {name: tuple(v) if isinstance(v := group[name], list) else v for name in wanted} == wanted
    everywhere = parts.build_optimizer(job_with(optimizer=section | {"decay": "all"}), module)
    assert [group["weight_decay"] for group in everywhere.param_groups] == [0.07]
    assert len(everywhere.param_groups[0]["params"]) == 4


def test_the_engines_options_are_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def create(strategy: str, task: nn.Module, make: Any, options: EngineOptions, world: World) -> None:
        given.extend((strategy, options))

    monkeypatch.setattr(parts, "create_engine", create)
    job = job_with(
        training={"clip_grad_norm": 0.7, "ema_decay": 0.9},
        engine={
            "strategy": "deepspeed",
            "zero_stage": 3,
            "compile": True,
            "channels_last": False,
            "precision": "bf16",
        },
    )
    parts.build_engine(job, nn.Identity(), Manifest(), World(0, 0, 1, torch.device("cpu")))  # type: ignore[arg-type]
    strategy, options = given
    assert strategy == "deepspeed"
    names = ("micro_batch_size", "num_micro_batches", "precision", "clip_grad_norm", "ema_decay", "compile")
    assert [getattr(options, name) for name in names] == [16, 4, "bf16", 0.7, 0.9, True]
    assert (options.channels_last, options.zero_stage) == (False, 3)
    assert (options.mean, options.std) == (Manifest.mean, Manifest.std)
    keys = {options.seed_for(step, number) for step in range(5) for number in range(4)}
    assert len(keys) == 20, "each micro-batch draws for itself"


def test_the_rate_is_the_jobs() -> None:
    """Every number of the schedule decides a rate somewhere."""
    schedule = {
        "name": "poly", "power": 2.0, "warmup_epochs": 1, "warmup_lr": 1e-5, "min_lr": 1e-4, "cooldown_epochs": 1,
        "delay_epochs": 0.5, "moves": "step",
    }  # fmt: skip
    changes: dict[str, Any] = {
        "power": 1.0, "warmup_epochs": 2, "warmup_lr": 2e-5, "min_lr": 2e-4, "delay_epochs": 0,
        "moves": "epoch", "decay_from": "start", "name": "cosine", "warmup_steps": 3,
    }  # fmt: skip

    def curve(**over: Any) -> list[float]:
        given = schedule | over
        if "warmup_steps" in over:
            given.pop("warmup_epochs")
        plan = StepPlan(job_with(schedule=given), 640)
        return [plan.lr(step) for step in range(0, 60)]

    base = curve()
    assert base[0] == 1e-5 and max(base) <= 1e-3
    assert set(base[55:]) == {1e-4} and base[54] > 1e-4, "five epochs and the delay, then the cool-down"
    assert [name for name, value in changes.items() if curve(**{name: value}) == base] == []
    steps = {"name": "step", "milestones": [1, 3], "gamma": 0.5, "warmup_epochs": 0}
    plan = StepPlan(job_with(schedule=steps), 640)
    assert [plan.lr(step) / 1e-3 for step in (0, 9, 10, 29, 30, 49)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_the_delay_holds_the_first_rate() -> None:
    plan = StepPlan(job_with(schedule={"delay_epochs": 0.5, "warmup_epochs": 1, "warmup_lr": 1e-5}), 640)
    assert {plan.lr(step) for step in range(6)} == {1e-5}
    assert plan.lr(6) > 1e-5


def test_the_decay_ends_with_the_last_whole_step() -> None:
    """25 samples of five epochs of 645 are no step."""
    plan = StepPlan(job_with(schedule={"name": "linear", "warmup_epochs": 0, "min_lr": 0.0}), 645)
    assert plan.stop_step == 50
    assert plan.lr(49) == pytest.approx(1e-3 / 50)
