"""Semantic FPN (Panoptic Feature Pyramid Networks, arXiv:1901.02446): dense prediction from a feature pyramid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from convmlp.tasks.heads.pyramid import Pyramid

_CHANNELS, _DROPOUT = 128, 0.1


class SemanticFPN(nn.Module):
    """[B, 3, H, W] → logits [B, num_classes, H', W'] at a quarter of the size, rounded as the backbone rounds.

    Each level passes a 3 x 3 convolution, BatchNorm and ReLU before every doubling of its size, the finest one once
    without; the sum of all is classified pixel by pixel. As published for ConvMLP: 256 channels in the pyramid, 128 in
    the head, dropout 0.1. BatchNorm sees the micro-batch (the authors synchronise it over GPUs).

    Args:
        backbone: a pyramid of strides 4, 8, 16, 32.
        num_classes: channels of the output.
    """

    body_strides = (4, 8, 16, 32)
    class_heads = ("classifier",)
    """Modules whose size depends on the number of classes, for `convmlp.weights`."""

    def __init__(self, backbone: Pyramid, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        width = backbone.out_channels
        self.levels = nn.ModuleList(
            nn.Sequential(
                *(
                    Conv2dNormActivation(width if step == 0 else _CHANNELS, _CHANNELS, bias=False)
                    for step in range(max(1, level))
                )
            )
            for level in range(len(self.body_strides))
        )
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.classifier = nn.Conv2d(_CHANNELS, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = list(self.backbone(images).values())
        sizes = [level.shape[-2:] for level in maps]
        total = self.levels[0](maps[0])
        for place in range(1, len(maps)):
            x = maps[place]
            # To each finer level's size, which is not exactly twice the last one's where sizes are odd.
            for block, finer in zip(self.levels[place].children(), reversed(sizes[:place]), strict=True):
                x = F.interpolate(block(x), size=finer, mode="bilinear")
            total = total + x
        return self.classifier(self.dropout(total))
