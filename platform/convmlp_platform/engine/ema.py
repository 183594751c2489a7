"""An exponential moving average of the weights, kept in the same pieces in which a rank holds the weights."""

from __future__ import annotations

import torch
from torch import Tensor


class WeightAverage:
    """`average = decay * average + (1 - decay) * weights` after every update, from the initial weights on.

    Float buffers (BatchNorm statistics) are averaged too, as timm's ModelEmaV2 does, which the published ConvMLP
    recipe uses. Because it works on local pieces, a sharded model needs no gathering here.
    """

    def __init__(self, decay: float, tensors: dict[str, Tensor]) -> None:
        self.decay = decay
        self.reset(tensors)

    def reset(self, tensors: dict[str, Tensor]) -> None:
        """Start again from `tensors`."""
        self._average = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The average, by name."""
        return self._average

    @torch.no_grad()
    def update(self, tensors: dict[str, Tensor]) -> None:
        """Move towards `tensors`."""
        current = [tensors[name].detach() for name in self._average]
        torch._foreach_lerp_(list(self._average.values()), current, 1.0 - self.decay)

    @torch.no_grad()
    def swap(self, tensors: dict[str, Tensor]) -> None:
        """Exchange the average and `tensors` in place; a second call undoes the first."""
        for name, average in self._average.items():
            held = tensors[name].detach().clone()
            tensors[name].detach().copy_(average)
            average.copy_(held)
