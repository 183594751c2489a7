"""What a training engine wraps: one module that holds the model and its loss."""

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torchmetrics import MetricCollection

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
