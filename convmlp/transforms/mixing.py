"""Mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899) of a micro-batch."""

from collections.abc import Callable

import torch
from timm.data import Mixup
from torch import Tensor

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images [B, C, H, W], labels [B] int64) → (mixed images, soft targets [B, num_classes] float32)."""


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
