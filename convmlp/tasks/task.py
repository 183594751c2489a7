"""The task that a training engine wraps: one module that holds the model and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

Images = Tensor | list[Tensor]
"""[B, 3, H, W], or B images [3, H, W] where their sizes differ; normalised float32."""

TaskOutput = tuple[Tensor, Any]
"""(loss, outputs): loss a float32 scalar, the mean over the micro-batch; outputs what the task's metrics are updated
with. Plain tuples, lists, dicts and tensors, which DDP, FSDP, DeepSpeed and torch.compile all pass through."""


class Metrics(Protocol):
    """Figures of held-out images; every image is given to one rank, and `compute` speaks of all ranks' (collective).
    torchmetrics' MetricCollection is one."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a micro-batch: the task's outputs in evaluation, and its targets."""
        ...

    def compute(self) -> Mapping[str, Any]:
        """Numbers by name: fractions in [0, 1], larger is better."""
        ...

    def reset(self) -> None:
        """Forget all images."""
        ...

    def to(self, device: torch.device) -> Self:
        """Compute on this device."""
        ...


class Task(nn.Module, ABC):
    """A model with its loss. Wrappers see one module, whose parameters are named `model.<name>`.

    Randomness is torch's alone (numpy's for mixup): who seeds it before a forward pass has fixed the pass.
    """

    best_metric: str
    """Of the metrics, the one by which an evaluation is better than another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, images: Images, targets: Any) -> TaskOutput:
        """Loss and outputs, as `self.training` or not."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """Fresh metrics, updated with `(outputs, targets)`."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` what gains by it and has no graph breaks: here the model, elsewhere its backbone."""
        self.model.compile(*args, **kwargs)

    def no_weight_decay(self) -> set[str]:
        """The model's own exclusions from weight decay, under this module's parameter names."""
        exclude = getattr(self.model, "no_weight_decay", None)
        return {f"model.{name}" for name in exclude()} if exclude is not None else set()


def check_num_classes(model: nn.Module, num_classes: int) -> None:
    """Does the model's head fit the dataset?

    Raises:
        ValueError: the model says how many classes it has, and it is another number.
    """
    own = getattr(model, "num_classes", num_classes)
    if own != num_classes:
        raise ValueError(
            f"the head of {type(model).__name__} has {own} classes, the dataset has {num_classes}: "
            "leave the model's number of classes out, or prepare the dataset it was made for"
        )
