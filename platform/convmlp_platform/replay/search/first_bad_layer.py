"""The search for the place in a model where numbers stop being finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fault:
    """The first layer whose output, or the gradient with respect to it, is not finite.

    `rows`: the places of the samples of which that is so, where the layer keeps samples apart.
    """

    layer: str
    what: str
    count: int
    of: int
    rows: list[int]

    def __str__(self) -> str:
        return f"{self.layer}: {self.count:,} of {self.of:,} values of its {self.what} are not finite"


class FaultWatch:
    """Looks at what layers put out, and at the gradients of that, in the order in which they are computed.

    Layers that change their input in place (ReLU) hide the output of the layer before them from nobody: each is
    looked at the moment it is there.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.output: Fault | None = None
        self.gradient: Fault | None = None

    @property
    def first(self) -> Fault | None:
        """Outputs come before gradients."""
        return self.output or self.gradient

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Within: watch all layers that hold no others, and the model as a whole."""
        leaves = [
            (name, layer) for name, layer in model.named_modules() if name and not any(layer.children())
        ]
        handles = [
            layer.register_forward_hook(self._hook(f"{name} ({type(layer).__name__})"))
            for name, layer in [*leaves, ("the model", model)]
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, title: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(_layer: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                self.output = self.output or self._fault(title, "output", tensor.detach())
                if tensor.requires_grad:
                    tensor.register_hook(self._look_at_gradient(title))  # type: ignore[no-untyped-call]

        return after

    def _look_at_gradient(self, title: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            self.gradient = self.gradient or self._fault(title, "output's gradient", gradient)

        return look

    def _fault(self, layer: str, what: str, tensor: Tensor) -> Fault | None:
        wrong = ~tensor.isfinite()
        count = int(wrong.sum())
        if not count:
            return None
        rows: list[int] = []
        if tensor.ndim > 1 and len(tensor) == self.batch:
            rows = torch.nonzero(wrong.flatten(1).any(dim=1)).flatten().tolist()
        return Fault(layer, what, count, tensor.numel(), rows)


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a layer put out."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _tensors(item)
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _tensors(item)
