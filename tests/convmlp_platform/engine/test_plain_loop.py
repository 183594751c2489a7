"""The product's step beside a loop of plain PyTorch that anyone can read: same losses, norms, weights and averages.

With SGD, which passes rounding on as it is. (AdamW divides by the gradient's own size: where that is nearly zero, the
last bit decides the direction.)
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from accelerate_state import forget_accelerate
from product_step import take_step
from ranks import run_ranks
from torch import Tensor, nn

from convmlp.optim import create_optimizer
from convmlp.tasks.classification import ClassificationTask, create_mixing
from convmlp_platform.data.sample_order import share_of
from convmlp_platform.distributed import joined_world
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineOptions
from convmlp_platform.training.build.parts import create_engine

STRATEGIES = [("ddp", 1), ("fsdp", 1), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
STEPS, MICRO_BATCHES, SIZE, CLASSES = 4, 3, 4, 5  # two ranks take two micro-batches and one
DECAY, CLIP, WEIGHT_DECAY, MOMENTUM, SMOOTHING = 0.7, 0.5, 0.05, 0.9, 0.1
TOLERANCE = 1e-6
"""Of weights of size 1 and losses of size 2; 4e-7 was seen."""


def lr_of(step: int) -> float:
    return 0.05 * (1 + step % 3)


def seed_of(step: int, number: int) -> int:
    return 7919 * step + 104729 * number + 17


@dataclass
class Micro:
    images: Tensor
    targets: Tensor
    number: int
    ghost: bool = False


def micro_batch(step: int, number: int, ghost: bool = False) -> Micro:
    draw = torch.Generator().manual_seed(1000 * step + number)
    images = torch.randn(SIZE, 3, 12, 12, generator=draw) * (1 + number)
    return Micro(images, torch.randint(0, CLASSES, (SIZE,), generator=draw), number, ghost)


def build_task() -> ClassificationTask:
    """With BatchNorm, dropout, mixup and CutMix, label smoothing, sizes that 2 doesn't divide, and a frozen layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Conv2d(6, 9, 3, bias=False),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.LayerNorm(144),
        nn.Dropout(0.1),
        nn.Linear(144, 301),
        nn.GELU(),
        nn.Linear(301, CLASSES),
    )
    model.num_classes = CLASSES  # type: ignore[assignment]
    model[0].requires_grad_(False)
    mixing = create_mixing(CLASSES, mixup=0.3, cutmix=1.0, label_smoothing=SMOOTHING)
    return ClassificationTask(model, num_classes=CLASSES, mixing=mixing)


@dataclass
class Found:
    """Losses and gradient norms by step; weights and averages, buffers too, by name."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    averages: dict[str, Tensor] = field(default_factory=dict)


def plain_loop() -> Found:
    """No engine, no ranks: what the papers' authors would have written."""
    task, found = build_task(), Found()
    model = task.model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=1.0,
        momentum=MOMENTUM,
        nesterov=True,
    )
    averages = {name: value.clone() for name, value in model.state_dict().items()}
    norm_layer = model[2]
    for step in range(STEPS):
        optimizer.zero_grad()
        before = norm_layer.running_mean.clone(), norm_layer.running_var.clone()
        moved, loss_sum = [], 0.0
        for number in range(MICRO_BATCHES):
            micro, seed = micro_batch(step, number), seed_of(step, number)
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            norm_layer.running_mean.copy_(before[0])
            norm_layer.running_var.copy_(before[1])
            loss, _ = task(micro.images, micro.targets)
            (loss / MICRO_BATCHES).backward()
            loss_sum += float(loss.detach()) / MICRO_BATCHES
            moved.append((norm_layer.running_mean.clone(), norm_layer.running_var.clone()))
        norm_layer.running_mean.copy_(torch.stack([mean for mean, _ in moved]).mean(0))
        norm_layer.running_var.copy_(torch.stack([var for _, var in moved]).mean(0))
        norm_layer.num_batches_tracked.fill_(step + 1)
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in trained if p.grad is not None))
        for parameter in trained:
            assert parameter.grad is not None
            parameter.grad *= min(1.0, CLIP / norm)
        for group in optimizer.param_groups:
            group["lr"] = lr_of(step)
        optimizer.step()
        found.losses.append(loss_sum)
        found.norms.append(norm)
        for name, value in model.state_dict().items():
            floating = value.is_floating_point()
            share = (1 - DECAY) / (1 - DECAY ** (step + 1))  # the initial weights have none
            averages[name] = (1 - share) * averages[name] + share * value if floating else value.clone()
    found.weights, found.averages = dict(model.state_dict()), averages
    return found


def product(strategy: str, zero_stage: int) -> Found:
    """The same by the step that runs take, on this rank and the others."""
    forget_accelerate()
    options = EngineOptions(
        micro_batch_size=SIZE,
        num_micro_batches=MICRO_BATCHES,
        seed_for=seed_of,
        clip_grad_norm=CLIP,
        ema_decay=DECAY,
        zero_stage=zero_stage,
    )
    make = partial(create_optimizer, name="sgd", lr=1.0, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM)
    with joined_world(use_gpu=False) as world:
        engine: Engine = create_engine(strategy, build_task(), make, options, world)
        share, found = share_of(world.rank, world.size, MICRO_BATCHES), Found()
        for step in range(STEPS):
            micros = [micro_batch(step, n, i >= share.real) for i, n in enumerate(share.numbers)]
            result = take_step(engine, micros, step=step, lr=lr_of(step))
            found.losses.append(result.agreed.loss)
            found.norms.append(result.agreed.grad_norm)
        found.weights = engine.full_model_state()
        with engine.averaged_weights():
            found.averages = engine.full_model_state()
        return found


def products(strategies: list[tuple[str, int]]) -> list[Found]:
    return [product(*strategy) for strategy in strategies]


@pytest.fixture(scope="module")
def plain() -> Found:
    return plain_loop()


def assert_equal(found: Found, wanted: Found, what: Any) -> None:
    close = partial(torch.testing.assert_close, rtol=0, atol=TOLERANCE)
    close(torch.tensor(found.losses), torch.tensor(wanted.losses), msg=lambda m: f"{what}: losses: {m}")
    close(
        torch.tensor(found.norms),
        torch.tensor(wanted.norms),
        rtol=TOLERANCE,
        msg=lambda m: f"{what}: norms: {m}",
    )
    for group in ("weights", "averages"):
        ours, theirs = getattr(found, group), getattr(wanted, group)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            close(ours[name].contiguous(), value, msg=lambda m, n=name, g=group: f"{what}: {g} {n}: {m}")


def test_what_is_compared_moves(plain: Found) -> None:
    """Clipping bites, the frozen layer stands still, the average lags behind."""
    start = build_task().model.state_dict()
    assert max(plain.norms) > CLIP
    assert torch.equal(plain.weights["0.weight"], start["0.weight"])
    for name in ("1.weight", "2.running_mean", "8.weight"):
        assert (plain.weights[name] - start[name]).abs().max() > 5e-3
        assert (plain.averages[name] - plain.weights[name]).abs().max() > 5e-4


def test_a_step_is_the_plain_loops(plain: Found) -> None:
    assert_equal(product("ddp", 1), plain, "ddp on one rank")


@pytest.mark.slow
def test_a_step_on_two_uneven_ranks_is_the_plain_loops(plain: Found) -> None:
    for by_rank in run_ranks(products, 2, STRATEGIES[:2]):
        for strategy, found in zip(STRATEGIES[:2], by_rank, strict=True):
            assert_equal(found, plain, strategy)


@pytest.mark.slow
def test_a_step_under_zero_on_two_uneven_ranks_is_the_plain_loops(plain: Found) -> None:
    for by_rank in run_ranks(products, 2, STRATEGIES[2:]):
        for strategy, found in zip(STRATEGIES[2:], by_rank, strict=True):
            assert_equal(found, plain, strategy)
