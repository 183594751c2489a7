"""Optimizers by name, through timm: decay of the weights alone, by timm's rule, or of every parameter."""

from typing import Any, Literal

import torch
from torch import nn

Decay = Literal["weights", "all"]

# Name → the options it takes beside lr and weight_decay. Only optimizers whose state is tensors of the
# parameter's shape: they work under DDP, FSDP and as a client optimizer of DeepSpeed.
OPTIMIZERS: dict[str, frozenset[str]] = {
    "adam": frozenset({"betas", "eps"}),
    "adamw": frozenset({"betas", "eps"}),
    "nadamw": frozenset({"betas", "eps"}),
    "lamb": frozenset({"betas", "eps"}),
    "lion": frozenset({"betas"}),
    "sgd": frozenset({"momentum"}),
    "momentum": frozenset({"momentum"}),
}

_FUSED = ("adam", "adamw", "sgd", "momentum")
"""Those of torch, whose one kernel updates all parameters, on CPUs too (docs/benchmarks.md)."""


def create_optimizer(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    weight_decay: float,
    decay: Decay = "weights",
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
    momentum: float | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over the trainable parameters of `model` (a model or a task).

    A group of parameters that would be empty is left out. Options left None keep the optimizer's own default
    (momentum: 0.9).

    Args:
        name: one of `OPTIMIZERS`; "sgd" is with Nesterov momentum, "momentum" without.
        decay: "weights": biases, 1-D tensors and what `model.no_weight_decay()` names are a group of their own that is
            not decayed. "all": one group, as torch.optim has it without being told (mmdetection's and mmsegmentation's
            recipes).

    Raises:
        ValueError: unknown name, or an option that this optimizer does not take.
    """
    given: dict[str, Any] = {"betas": betas, "eps": eps, "momentum": momentum}
    options = {option: value for option, value in given.items() if value is not None}
    check_optimizer(name=name, decay=decay, **options)
    import timm.optim  # with torch's compiler, which torch's optimizers load as well, seconds of import

    def groups_of(module: nn.Module, **kwargs: Any) -> list[dict[str, Any]]:
        if decay == "all":
            return [{"params": [parameter for parameter in module.parameters() if parameter.requires_grad]}]
        groups = timm.optim.param_groups_weight_decay(
            module, weight_decay, no_weight_decay_list=_no_weight_decay(module)
        )
        return [group for group in groups if group["params"]]

    if name in _FUSED:
        options["fused"] = True
    return timm.optim.create_optimizer_v2(
        model, opt=name, lr=lr, weight_decay=weight_decay, param_group_fn=groups_of, **options
    )


def check_optimizer(*, name: str, decay: str = "weights", **options: Any) -> None:
    """Raises ValueError for arguments of `create_optimizer` that it refuses; nothing is made or imported."""
    if decay not in ("weights", "all"):
        raise ValueError(f"decay must be weights or all, not {decay!r}")
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer is named {name!r}: choose from {', '.join(OPTIMIZERS)}")
    if unused := sorted(options.keys() - OPTIMIZERS[name]):
        raise ValueError(f"optimizer {name!r} does not take {', '.join(unused)}")
    if name == "sgd" and options.get("momentum") == 0:
        raise ValueError("momentum must be above 0 for Nesterov's: leave Nesterov out, or raise it")
    if not all(0 <= beta < 1 for beta in options.get("betas", ())):
        raise ValueError(f"betas must lie in [0, 1), not {tuple(options['betas'])}")


def _no_weight_decay(module: nn.Module) -> set[str]:
    exclude = getattr(module, "no_weight_decay", None)
    return set(exclude()) if exclude is not None else set()
