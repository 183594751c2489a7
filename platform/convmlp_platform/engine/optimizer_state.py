"""Optimizer state by parameter name, for engines whose optimizer is a plain torch one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SEPARATOR = "/"


def optimizer_slots(
    optimizer: torch.optim.Optimizer, model: nn.Module, full: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """`name/slot` → full tensor on the CPU, for every slot of a parameter's own shape (exp_avg, ...).

    Step counts are left out: they are the number of updates, which the caller keeps.
    """
    return {
        f"{name}{SEPARATOR}{slot}": full(value).detach().to("cpu", copy=True)
        for (name, slot), value in live_slots(optimizer, model).items()
    }


def live_slots(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """(name, slot) → the optimizer's own tensor, for every slot of a parameter's own shape.

    Raises:
        ValueError: a slot has another shape: a checkpoint couldn't hold it.
    """
    found = {}
    for name, parameter in model.named_parameters():
        for slot, value in sorted(optimizer.state.get(parameter, {}).items()):
            if slot == "step" or not isinstance(value, Tensor):
                continue
            if value.shape != parameter.shape:
                raise ValueError(
                    f"{type(optimizer).__name__}'s {slot} of {name} has shape {tuple(value.shape)}, not "
                    f"{tuple(parameter.shape)} as the parameter: checkpoints hold no such state"
                )
            found[name, slot] = value
    return found


def load_optimizer_slots(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    slots: dict[str, Tensor],
    updates: int,
    like: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Undo `optimizer_slots`; `like(full, parameter)` shapes a full tensor as the rank holds the parameter, strides
    included.

    Raises:
        ValueError: a tensor has other strides than its parameter.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in slots.items():
        name, slot = key.rsplit(SEPARATOR, 1)
        by_name.setdefault(name, {})[slot] = value
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if name in by_name:
            own = {slot: like(value, parameter) for slot, value in by_name[name].items()}
            # A fused optimizer goes through memory in its own order, and doesn't look whether that is the parameter's.
            if any(_steps(value) != _steps(parameter) for value in own.values()):
                raise ValueError(
                    f"the optimizer's state of {name} lies otherwise in memory than the parameter"
                )
            # A fused optimizer counts where it computes, the others on the CPU.
            place = parameter.device if optimizer.defaults.get("fused") else "cpu"
            optimizer.state[parameter] = {"step": torch.tensor(float(updates), device=place), **own}
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = updates


def _steps(tensor: Tensor) -> list[int]:
    """The strides that count: of a dimension of one element they may be any."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
