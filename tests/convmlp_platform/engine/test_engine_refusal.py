"""A step that is refused, under every strategy: as if it had never been computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from product_step import take_step
from ranks import run_ranks
from test_engines_agree import NUM_MICRO_BATCHES, STRATEGIES, Micro, build, by_name, micro_batch

from convmlp_platform.data.sample_order import share_of
from convmlp_platform.distributed import joined_world, sum_over_ranks
from convmlp_platform.engine.engine import Engine


def micros(engine: Engine, step: int, poisoned: bool = False) -> list[Micro]:
    """This rank's micro-batches; poisoned: rank 0's first has a pixel that isn't finite."""
    share = share_of(engine.world.rank, engine.world.size, NUM_MICRO_BATCHES)
    found = [micro_batch(step, n, i >= share.real) for i, n in enumerate(share.numbers)]
    if poisoned and engine.world.is_main:
        found[0].images[0, 0, 0, 0] = math.nan
    return found


def step_of(engine: Engine, step: int) -> tuple[float, float, list[float]]:
    """Loss, gradient norm and this rank's losses of a good step."""
    computed = engine.compute(micros(engine, step), step=step)
    loss, norm = computed.loss.clone(), math.sqrt(float(sum_over_ranks(engine.square_norm())))
    engine.update(0.01, norm)
    return float(sum_over_ranks(loss)), norm, [float(loss) for loss in computed.losses]


def snapshot(engine: Engine) -> tuple[dict[str, Any], int]:
    state = engine.state()
    return by_name(state), state.updates


def disturbed_and_not(strategy: str, zero_stage: int, disturb: str) -> list[str]:
    """What is wrong with an engine that computed bad steps, and good ones it had to throw away, beside one that
    didn't."""
    quiet, noisy = (build(strategy, zero_stage, "fp32") for _ in range(2))
    problems: list[str] = []
    for step in range(3):
        before = snapshot(noisy)
        DISTURBANCES[disturb](noisy, step, problems)
        if not same(snapshot(noisy), before):
            problems.append(f"step {step}: a refused step left something behind")
        if step_of(quiet, step) != step_of(noisy, step):
            problems.append(f"step {step}: another loss or gradient after a refused step")
    if not same(snapshot(quiet), snapshot(noisy)):
        problems.append("the end differs")
    return [f"{strategy} {zero_stage}: {problem}" for problem in problems]


def bad_step(engine: Engine, step: int, problems: list[str]) -> None:
    engine.compute(micros(engine, step, poisoned=True), step=step)
    norm = float(sum_over_ranks(engine.square_norm()))
    if math.isfinite(norm):
        problems.append(f"step {step}: a gradient that isn't finite has norm {norm}")
    engine.refuse()


def good_step(engine: Engine, step: int, problems: list[str]) -> None:
    engine.compute(micros(engine, step), step=step)
    engine.refuse()


DISTURBANCES: dict[str, Callable[[Engine, int, list[str]], None]] = {"bad": bad_step, "good": good_step}


def same(found: tuple[dict[str, Any], int], wanted: tuple[dict[str, Any], int]) -> bool:
    names = found[0].keys()
    return (
        found[1] == wanted[1]
        and names == wanted[0].keys()
        and all(torch.equal(found[0][n], wanted[0][n]) for n in names)
    )


def all_problems(strategies: list[tuple[str, int]]) -> list[str]:
    return [
        problem
        for strategy, stage in strategies
        for disturb in DISTURBANCES
        for problem in disturbed_and_not(strategy, stage, disturb)
    ]


def test_a_refused_step_changes_nothing_under_ddp_and_fsdp() -> None:
    assert run_ranks(all_problems, 2, STRATEGIES[:2]) == [[], []]


@pytest.mark.slow
def test_a_refused_step_changes_nothing_under_zero() -> None:
    """ZeRO has reduced gradients into buffers of its own by then."""
    assert run_ranks(all_problems, 2, STRATEGIES[2:]) == [[], []]


def test_a_world_of_one_too() -> None:
    with joined_world(use_gpu=False):
        assert all_problems(STRATEGIES[:1]) == []


def fp16_steps(strategy: str, zero_stage: int) -> list[tuple[float, bool, float, float, int]]:
    """(loss scale before, updated, loss, gradient norm, updates) of steps whose first scale is far too high."""
    engine = build(strategy, zero_stage, "fp16")
    engine.loss_scale.scale = 2.0**40
    found = []
    while engine.updates < 3:
        scale, step = engine.loss_scale.scale, engine.updates
        result = take_step(engine, micros(engine, step), step=step, lr=0.01)
        agreed = result.agreed
        found.append((scale, result.updated, agreed.loss, agreed.grad_norm, engine.updates))
    return found


def all_fp16(strategies: list[tuple[str, int]]) -> list[Any]:
    return [fp16_steps(strategy, stage) for strategy, stage in strategies]


def fp32_steps() -> list[tuple[float, float]]:
    engine = build("ddp", 1, "fp32")
    return [step_of(engine, step)[:2] for step in range(3)]


@pytest.mark.slow
def test_fp16_lowers_its_loss_scale_until_gradients_are_finite() -> None:
    """(Accelerate's fp16 needs a GPU; the others' runs on CPU ranks.) Skipped updates count as none."""
    wanted = run_ranks(fp32_steps, 1)[0]
    for steps in run_ranks(all_fp16, 2, STRATEGIES[1:])[0]:
        assert [updated for _, updated, *_ in steps[:4]] == [False] * 4
        halved = [before / (1 if updated else 2) for before, updated, *_ in steps]
        assert [after for after, *_ in steps[1:]] == halved[:-1]
        found = [(loss, norm) for _, updated, loss, norm, _ in steps if updated]
        assert found == [pytest.approx(pair, rel=0.02) for pair in wanted]
