"""A rank whose collective fails because another has gone says so, by the place of the error and not by its text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from product_step import take_step
from ranks import run_ranks
from test_engines_agree import STRATEGIES, build, micro_batch

from convmlp_platform.distributed import (
    World,
    broadcast_object,
    lost_peer,
    on_main,
    pick_device,
    sum_over_ranks,
)
from convmlp_platform.launch.workers.training_process import failed


def left_alone(place: str, zero_stage: int = 1) -> dict[str, Any] | None:
    """Rank 1 leaves after the first round, rank 0 goes on: the outcome of its process."""
    engine = build(place, zero_stage, "fp32") if place in dict(STRATEGIES) else None
    rank = dist.get_rank()
    for step in range(2):
        if step and rank:
            return None
        try:
            if engine is not None:
                micros = [micro_batch(step, number, False) for number in (rank, rank + 2)]
                take_step(engine, micros, step=step, lr=0.01)
            elif place == "sum":
                sum_over_ranks(torch.ones(3))
            elif place == "object":
                broadcast_object("told" if rank == 0 else None)
            elif place == "main":
                on_main(World(rank, rank, 2, pick_device(False, rank)), lambda: "done")
        except Exception as error:
            return failed(error)
    return None


def check(outcome: dict[str, Any] | None) -> None:
    assert outcome is not None
    assert outcome["peer"], outcome["traceback"]
    assert outcome["cause"] == "code"


@pytest.mark.parametrize("place", ["sum", "object", "ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_broken_collective_is_a_consequence(place: str) -> None:
    check(run_ranks(left_alone, 2, place)[0])


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_broken_collective_of_deepspeed_is_a_consequence(zero_stage: int) -> None:
    pytest.importorskip("deepspeed")
    check(run_ranks(left_alone, 2, "deepspeed", zero_stage)[0])


def refused_on_main() -> dict[str, Any] | None:
    world = World(dist.get_rank(), 0, 2, pick_device(False, 0))

    def refuse() -> None:
        from convmlp_platform.errors import CheckpointError

        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise CheckpointError("can't write", details={"step": 7}) from error

    try:
        on_main(world, refuse)
    except Exception as error:
        return failed(error)
    return None


def test_an_error_of_the_main_rank_has_the_same_cause_on_all() -> None:
    for outcome in run_ranks(refused_on_main, 2):
        assert outcome["platform"] == "CheckpointError"
        assert (outcome["cause"], outcome["details"], outcome["peer"]) == ("storage", {"step": 7}, False)


class Backward(torch.autograd.Function):
    """Fails in backward with any text."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor, text: str) -> torch.Tensor:  # type: ignore[override]
        context.text = text
        return value * 2

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        raise RuntimeError(context.text)


GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:29583"
)


@pytest.mark.parametrize("text", ["Tensor mlp_connection closed over gloo_weights is NaN", GLOO])
def test_a_text_alone_is_no_consequence(text: str) -> None:
    for place in (lambda: exec("raise RuntimeError(text)", {"text": text}), lambda: in_backward(text)):
        with pytest.raises(RuntimeError) as raised:
            place()
        assert not lost_peer(raised.value)
        assert failed(raised.value)["cause"] == "code"


def in_backward(text: str) -> None:
    value = torch.ones(2, requires_grad=True)
    Backward.apply(value, text).sum().backward()  # type: ignore[no-untyped-call]


def test_a_bug_in_backward_is_no_consequence() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2).sum().backward()
    assert not lost_peer(raised.value)


@pytest.mark.parametrize("kind", [dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError])
def test_errors_of_nccl_and_the_store_have_classes(kind: type[Exception]) -> None:
    assert lost_peer(kind("whatever it says"))
