"""What a training engine wraps: one module that holds the model and its loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    images: Tensor
    """[B, 3, H, W] float32, normalised."""
    labels: Tensor
    """[B] int64, class indices."""
    sample_ids: Tensor | None = None
    """[B] int64, the samples' positions in the dataset."""

    def to(
        self, device: torch.device | str, memory_format: torch.memory_format = torch.preserve_format
    ) -> "Batch":
        """Copy to a device (asynchronously from pinned memory); `memory_format` is that of the images."""
        return Batch(
            self.images.to(device, non_blocking=True, memory_format=memory_format),
            self.labels.to(device, non_blocking=True),
            None if self.sample_ids is None else self.sample_ids.to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.labels)


TaskOutput = tuple[Tensor, Tensor]
"""(loss, logits): loss a float32 scalar, the mean over the micro-batch; logits float32, [B, num_classes] for
classification. A plain tuple, which DDP, FSDP, DeepSpeed and torch.compile all pass through."""


class Task(nn.Module, ABC):
    """A model with its loss. Wrappers see one module, whose parameters are named `model.<name>`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def forward(self, images: Tensor, labels: Tensor) -> TaskOutput:
        """images [B, 3, H, W], labels [B] int64 → (loss, logits), as `self.training` or not."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics, updated with `(logits, labels)`, that synchronise over ranks by themselves."""

    def no_weight_decay(self) -> set[str]:
        """The model's own exclusions from weight decay, under this module's parameter names."""
        exclude = getattr(self.model, "no_weight_decay", None)
        return {f"model.{name}" for name in exclude()} if exclude is not None else set()
