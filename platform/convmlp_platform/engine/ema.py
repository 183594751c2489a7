"""An exponential moving average of the weights, kept in the same pieces in which a rank holds the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convmlp_platform.torch_internals import move_all


class WeightAverage:
    """The mean of the weights after every update, each with `decay` times the weight of the one after it.

    The initial weights have no part in it, as the moments of Adam (Kingma and Ba, 2015, section 3) have none of their
    zeros. timm's ModelEmaV2 begins with them: at a decay of 0.99996 they are 99.95 % of its average after 12 updates,
    61 % after 12,500. After 300 epochs of ImageNet at 1,024 images a step (375,300 updates) they are 3e-7 of it, so
    that both are the same.

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
    def update(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Move towards `tensors`, which are the weights after this many updates (1, 2, ...)."""
        current = [tensors[name].detach() for name in self._average]
        share = (1.0 - self.decay) / -math.expm1(updates * math.log(self.decay))
        move_all(list(self._average.values()), current, share)

    @torch.no_grad()
    def swap(self, tensors: dict[str, Tensor]) -> None:
        """Exchange the average and `tensors` in place; a second call undoes the first."""
        for name, average in self._average.items():
            held = tensors[name].detach().clone()
            tensors[name].detach().copy_(average)
            average.copy_(held)
