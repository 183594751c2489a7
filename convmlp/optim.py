"""Optimizers by name, torch's or timm's: decay of the weights alone, by timm's rule, or of every parameter."""

from collections.abc import Callable
from fnmatch import fnmatch
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

_TORCHS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
}
"""Those of torch, whose one kernel updates all parameters, on CPUs too (docs/benchmarks.md); the others are timm's."""


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
    groups = _groups(model, weight_decay, decay)
    if name in _TORCHS:
        kind, defaults = _TORCHS[name]
        return kind(groups, lr=lr, weight_decay=weight_decay, fused=True, **defaults | options)
    import timm.optim  # with all of timm's networks, a second of import, which most jobs are spared

    return timm.optim.create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, **options)


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


def _groups(model: nn.Module, weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    """The groups of parameters that aren't empty, made and in the order as by timm (`param_groups_weight_decay`)."""
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if decay == "all":
        return [{"params": list(trained.values())}]
    exclude = getattr(model, "no_weight_decay", None)
    patterns = tuple(exclude()) if exclude is not None else ()
    plain: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, one in trained.items():
        excluded = (
            one.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in patterns)
        )
        (plain if excluded or not weight_decay else decayed).append(one)
    groups = ((plain, 0.0), (decayed, weight_decay))
    return [{"params": ones, "weight_decay": share} for ones, share in groups if ones]
