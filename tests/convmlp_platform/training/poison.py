"""A fault in a run's forward pass, planted where the task is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from convmlp_platform.training.build import parts

build_task = parts.build_task


class Poison:
    """Spoils the outputs of chosen training forward passes of this process, counted from 0.

    Args:
        chosen: whether the n-th is.
        sticky: whether the same micro-batch is spoilt whenever it comes again: the data's fault, not the machine's.
        factor: what the logits are multiplied by.
    """

    def __init__(self, chosen: Callable[[int], bool], sticky: bool = False, factor: float = math.nan) -> None:
        self.chosen, self.sticky, self.factor = chosen, sticky, factor
        self.calls = 0
        self._seen: list[Tensor] = []

    def hook(self, model: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        if not model.training:
            return logits
        number, self.calls = self.calls, self.calls + 1
        spoilt = self.chosen(number) or any(torch.equal(inputs[0], seen) for seen in self._seen)
        if spoilt and self.sticky:
            self._seen.append(inputs[0].detach().clone())
        return logits * self.factor if spoilt else logits

    @contextmanager
    def planted(self) -> Iterator[None]:
        def spoilt_task(*args: Any) -> Any:
            task = build_task(*args)
            task.model.register_forward_hook(self.hook)
            return task

        with mock.patch.object(parts, "build_task", spoilt_task):
            yield
