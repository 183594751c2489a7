"""Optimizer state lies in memory as its parameter does: a fused update goes through both without looking."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convmlp.optim import create_optimizer
from convmlp_platform.engine.optimizer_state import load_optimizer_slots, optimizer_slots


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    torch.manual_seed(1)
    optimizer = create_optimizer(model, name="adamw", lr=0.1, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)


def after_another_step(like: object) -> Tensor:
    """The weights where the state was taken out and put back before."""
    model = conv()
    optimizer = stepped(model)
    if like is not None:
        state = optimizer_slots(optimizer, model, full=lambda tensor: tensor)
        load_optimizer_slots(optimizer, model, state, 1, like=like)  # type: ignore[arg-type]
    optimizer.step()
    return model.get_parameter("weight").detach()


def test_state_put_back_in_the_parameters_layout_goes_on_as_if_nothing_had_been() -> None:
    found = after_another_step(lambda full, p: torch.empty_like(p, requires_grad=False).copy_(full))
    assert torch.equal(found, after_another_step(None))


def test_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="the optimizer's state of weight lies otherwise in memory"):
        after_another_step(lambda full, _p: full.contiguous())
