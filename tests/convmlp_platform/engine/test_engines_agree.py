"""Every strategy on every world size computes the same run, and each goes on from any other's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from accelerate_state import forget_accelerate
from product_step import take_step
from ranks import run_ranks
from torch import Tensor, nn

from convmlp_platform.data.sample_order import derive_key, share_of
from convmlp_platform.distributed import joined_world
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineOptions, EngineState, OptimizerFactory
from convmlp_platform.launch.cluster.capacity import cpu_has_bf16
from convmlp_platform.training.build.parts import create_engine

STRATEGIES = [("ddp", 1), ("fsdp", 1), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]
NUM_MICRO_BATCHES, MICRO_BATCH_SIZE, CLASSES = 4, 4, 5
STEPS, RESUME_AT = 4, 2


class TinyTask(nn.Module):
    """Everything that makes strategies differ: BatchNorm, LayerNorm, dropout, parameters no multiple of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 9, 3, bias=False),
            nn.BatchNorm2d(9),
            nn.ReLU(),
            nn.Conv2d(9, 7, 3, padding=1),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.LayerNorm(112),
            nn.Dropout(0.1),
            nn.Linear(112, 900),
            nn.GELU(),
            nn.Linear(900, CLASSES),
        )

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images).float()
        return nn.functional.cross_entropy(logits, labels), logits


@dataclass
class Micro:
    images: Tensor
    targets: Tensor
    number: int
    ghost: bool = False


def micro_batch(step: int, number: int, ghost: bool) -> Micro:
    draw = torch.Generator().manual_seed(1000 * step + number)
    images = torch.randn(MICRO_BATCH_SIZE, 3, 12, 12, generator=draw) * (1 + number)
    return Micro(images, torch.randint(0, CLASSES, (MICRO_BATCH_SIZE,), generator=draw), number, ghost)


def two_groups(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays matrices only, as most recipes do; fused, as `create_optimizer` makes it."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    plain = [p for p in module.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], fused=True
    )


def build(
    strategy: str, zero_stage: int, precision: str, make_optimizer: OptimizerFactory = two_groups
) -> Engine:
    forget_accelerate()
    torch.manual_seed(0)
    task = TinyTask()
    options = EngineOptions(
        micro_batch_size=MICRO_BATCH_SIZE,
        num_micro_batches=NUM_MICRO_BATCHES,
        seed_for=lambda step, number: derive_key(5, step, number),
        precision=precision,  # type: ignore[arg-type]
        clip_grad_norm=1.0,
        ema_decay=0.7,
        zero_stage=zero_stage,
    )
    with joined_world(use_gpu=False) as world:
        return create_engine(strategy, task, make_optimizer, options, world)


def train(engine: Engine, start: int, stop: int) -> list[tuple[float, float]]:
    """(mean loss, gradient norm) of each step, over all ranks."""
    share = share_of(engine.world.rank, engine.world.size, NUM_MICRO_BATCHES)
    curve = []
    for step in range(start, stop):
        micros = [micro_batch(step, n, i >= share.real) for i, n in enumerate(share.numbers)]
        agreed = take_step(engine, micros, step=step, lr=0.01 * (1 + step % 3)).agreed
        curve.append((agreed.loss, agreed.grad_norm))
    return curve


def undisturbed(
    strategy: str, zero_stage: int, precision: str, make_optimizer: OptimizerFactory = two_groups
) -> tuple[list[Any], EngineState, EngineState]:
    """The whole curve, and the state at RESUME_AT and at the end."""
    engine = build(strategy, zero_stage, precision, make_optimizer)
    curve = train(engine, 0, RESUME_AT)
    middle = engine.state()
    curve += train(engine, RESUME_AT, STEPS)
    return curve, middle, engine.state()


def resumed(
    strategy: str, zero_stage: int, middle: EngineState, make_optimizer: OptimizerFactory = two_groups
) -> tuple[list[Any], EngineState, EngineState]:
    engine = build(strategy, zero_stage, "fp32", make_optimizer)
    train(engine, 90, 91)  # what a resume must wipe out
    engine.load_state(middle)
    loaded = engine.state()
    return train(engine, RESUME_AT, STEPS), loaded, engine.state()


def each_of(strategies: list[tuple[str, int]], precision: str) -> list[Any]:
    return [undisturbed(strategy, stage, precision) for strategy, stage in strategies]


def all_resumed(middle: EngineState, strategies: list[tuple[str, int]]) -> list[Any]:
    return [resumed(strategy, stage, middle) for strategy, stage in strategies]


def assert_same(found: EngineState, wanted: EngineState, rtol: float, atol: float) -> None:
    assert found.updates == wanted.updates
    assert by_name(found).keys() == by_name(wanted).keys()
    for name, tensor in by_name(wanted).items():
        torch.testing.assert_close(
            by_name(found)[name], tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def by_name(state: EngineState) -> dict[str, Tensor]:
    groups = {"model": state.model, "optimizer": state.optimizer, "ema": state.ema or {}}
    return {f"{group} {name}": tensor for group, named in groups.items() for name, tensor in named.items()}


@pytest.fixture(scope="module")
def reference() -> tuple[list[Any], EngineState, EngineState]:
    """One process, plain ddp: what everything else must equal."""
    return run_ranks(undisturbed, 1, "ddp", 1, "fp32")[0]


# What differs most comes first; ZeRO-1 and 2 share their code with ZeRO-3, FSDP shards as ZeRO-3 does.
FEW = pytest.param([STRATEGIES[0], STRATEGIES[4]], id="ddp and ZeRO-3")
REST = pytest.param(STRATEGIES[1:4], id="FSDP, ZeRO-1 and ZeRO-2", marks=pytest.mark.slow)


def test_every_strategy_gives_the_same_run(reference: Any) -> None:
    """Three ranks do not divide the 4 micro-batches: ghosts take part."""
    curve, _, end = reference
    for by_rank in zip(*run_ranks(each_of, 3, STRATEGIES, "fp32"), strict=True):
        for found_curve, _, found_end in by_rank:
            np.testing.assert_allclose(found_curve, curve, rtol=2e-5)
            assert_same(found_end, end, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [FEW, REST])
def test_every_strategy_goes_on_from_any_state(reference: Any, strategies: list[tuple[str, int]]) -> None:
    curve, middle, end = reference
    for found_curve, loaded, found_end in run_ranks(all_resumed, 2, middle, strategies)[0]:
        assert_same(loaded, middle, rtol=0, atol=0)
        np.testing.assert_allclose(found_curve, curve[RESUME_AT:], rtol=2e-5)
        assert_same(found_end, end, rtol=1e-3, atol=2e-5)


# A CPU without bf16 instructions takes ten times as long as for fp32.
@pytest.mark.parametrize(
    "strategies",
    [
        pytest.param(STRATEGIES[:1], id="ddp", marks=() if cpu_has_bf16() else pytest.mark.slow),
        pytest.param(STRATEGIES[1:], id="sharded", marks=pytest.mark.slow),
    ],
)
def test_bf16_stays_close_to_fp32(reference: Any, strategies: list[tuple[str, int]]) -> None:
    curve, _, _ = reference
    for found_curve, _, _ in run_ranks(each_of, 2, strategies, "bf16")[0]:
        losses = np.array(found_curve)[:, 0]
        np.testing.assert_allclose(losses, np.array(curve)[:, 0], rtol=0.02)
        assert not np.array_equal(losses, np.array(curve)[:, 0]), "bf16 computed exactly what fp32 does"


def one_group(module: nn.Module) -> torch.optim.Optimizer:
    """Decay of all parameters, as mmdetection's recipes have it."""
    return torch.optim.AdamW(module.parameters(), weight_decay=0.05)


def momentum(module: nn.Module) -> torch.optim.Optimizer:
    """A state of one slot, which counts no steps."""
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)


def with_optimizer(make: OptimizerFactory, strategies: list[tuple[str, int]]) -> list[Any]:
    """The run of each strategy, and the same resumed."""
    found = []
    for strategy, stage in strategies:
        curve, middle, end = undisturbed(strategy, stage, "fp32", make)
        found.append((curve, end, *resumed(strategy, stage, middle, make)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("make", [one_group, momentum])
def test_one_parameter_group_is_enough(make: OptimizerFactory) -> None:
    """For ZeRO, too, whose stages 1 and 2 keep a list of groups."""
    ((curve, end, *_),) = run_ranks(with_optimizer, 1, make, STRATEGIES[:1])[0]
    for found_curve, found_end, resumed_curve, _, resumed_end in run_ranks(
        with_optimizer, 2, make, STRATEGIES
    )[0]:
        np.testing.assert_allclose(found_curve, curve, rtol=2e-5)
        np.testing.assert_allclose(resumed_curve, curve[RESUME_AT:], rtol=2e-5)
        assert_same(found_end, end, rtol=1e-3, atol=2e-5)
        assert_same(resumed_end, end, rtol=1e-3, atol=2e-5)
