"""Image classification: cross entropy on hard, smoothed or mixed labels.

Mixing is Mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899) of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from convmlp.tasks.task import Task, TaskOutput, check_num_classes

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images [B, C, H, W], labels [B] int64) → (mixed images, soft targets [B, num_classes] float32)."""


class ClassificationTask(Task):
    """Cross entropy in float32, whatever the precision of the model.

    In training, `mixing` (if any) makes mixed images and soft targets, and its own label smoothing holds;
    without it `label_smoothing` does. In evaluation neither applies: plain cross entropy.

    Args:
        model: [B, 3, H, W] → logits [B, num_classes].
        num_classes: number of classes.
        label_smoothing: mass spread over all classes, in [0, 1); used where `mixing` is None.
        mixing: from `create_mixing`.

    Raises:
        ValueError: `label_smoothing` is out of range, or the model's head has another number of classes.
    """

    best_metric = "top1"

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__(model)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
        check_num_classes(model, num_classes)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.mixing = mixing

    def forward(self, images: Tensor, targets: Tensor) -> TaskOutput:  # type: ignore[override]
        """images [B, 3, H, W], targets [B] int64 labels → (mean loss, logits [B, num_classes]), both float32."""
        smoothing = 0.0
        if self.training:
            if self.mixing is not None:
                images, targets = self.mixing(images, targets)
            else:
                smoothing = self.label_smoothing
        # Autocast casts the loss by itself; a model kept in bfloat16 (DeepSpeed) has no autocast.
        logits = self.model(images).float()
        return F.cross_entropy(logits, targets, label_smoothing=smoothing), logits

    def metrics(self) -> TopAccuracy:
        return metrics(self.num_classes)


class TopAccuracy:
    """The fractions of samples whose label is among the k highest logits, by name, over all ranks.

    It counts as torchmetrics' MulticlassAccuracy (micro) does, whose import costs a process 4 s of CPU, as much as all
    else that a start of training imports.

    Args:
        ks: k by name.
    """

    def __init__(self, ks: Mapping[str, int]) -> None:
        self.ks = dict(ks)
        self._counts = torch.zeros(len(self.ks) + 1, dtype=torch.int64)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits [B, num_classes], labels [B] int64."""
        found = [self._highest(logits, k) == labels[:, None] for k in self.ks.values()]
        self._counts += torch.stack([one.any(1).sum() for one in found] + [labels.new_tensor(len(labels))])

    def compute(self) -> dict[str, Tensor]:
        """Returns fractions in [0, 1], float32 scalars; 0 where there was no sample. Collective."""
        counts = self._counts.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        *correct, seen = counts
        return {name: one / seen.clamp(min=1) for name, one in zip(self.ks, correct, strict=True)}

    def reset(self) -> None:
        """Forget all samples."""
        self._counts.zero_()

    def to(self, device: torch.device) -> Self:
        """Count on this device."""
        self._counts = self._counts.to(device)
        return self

    @staticmethod
    def _highest(logits: Tensor, k: int) -> Tensor:
        """[B, k] int64; of equal ones, `argmax` takes the first everywhere."""
        return logits.argmax(1, keepdim=True) if k == 1 else logits.topk(k, dim=1).indices


def metrics(num_classes: int) -> TopAccuracy:
    """`top1`, and `top5` where there are more than five classes: fractions of samples in [0, 1].

    Update with logits [B, num_classes] and labels [B].
    """
    return TopAccuracy({"top1": 1} | ({"top5": 5} if num_classes > 5 else {}))


def create_mixing(
    num_classes: int,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    prob: float = 1.0,
    switch_prob: float = 0.5,
    label_smoothing: float = 0.0,
) -> Mixing | None:
    """One draw for the whole batch, whose sample i is mixed with sample B - 1 - i; None if both alphas are 0.

    The callable overwrites the images given to it. It draws from numpy's global generator only: seed that to
    make the draw a function of your own key. Label smoothing is part of the soft targets; without mixing it
    belongs in the loss.

    Args:
        mixup, cutmix: alpha of the Beta distribution of the mixing weight; 0 switches the method off.
        prob: probability that a batch is mixed at all.
        switch_prob: probability of CutMix where both are on.

    Raises:
        ValueError: an argument is out of range; on calling, an odd number of samples.
    """
    for name, value in {"prob": prob, "switch_prob": switch_prob, "label_smoothing": label_smoothing}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], not {value}")
    if mixup < 0 or cutmix < 0:
        raise ValueError(f"mixup and cutmix must not be negative: got mixup={mixup}, cutmix={cutmix}")
    if mixup == 0 and cutmix == 0:
        return None
    from timm.data import Mixup  # seconds of import, which jobs without mixing are spared

    mix = Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=prob,
        switch_prob=switch_prob,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )

    # Dynamo would trace numpy's generator into torch's and so change the draw.
    @torch.compiler.disable
    def mixing(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(images) % 2:
            raise ValueError(f"mixing pairs samples: the micro-batch must be even, not {len(images)}")
        mixed, targets = mix(images, labels)
        return mixed, targets.float()

    return mixing
