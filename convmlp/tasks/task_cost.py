"""Multiply-accumulates of a task's whole model, where what follows the backbone depends on the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convmlp.model_cost import count_macs
from convmlp.tasks.heads.mask_rcnn import MaskRCNN
from convmlp.tasks.heads.retinanet import RetinaNet

PROPOSALS, MASKED = 1000, 100
"""Of Mask R-CNN: boxes that are looked at and objects that get a mask, at most and as counted (mmdetection's habit)."""


def count_task_macs(model: nn.Module, image_size: int | tuple[int, int]) -> int:
    """Multiply-accumulates of one image by `convmlp.model_cost.count_macs`'s definition, of any task's model.

    Detectors: backbone, pyramid and heads on every anchor; of Mask R-CNN the heads on 1,000 proposals and the masks of
    100 objects. Sampling of regions and NMS are no matrix products and don't count.

    Args:
        image_size: pixels, one side or (height, width).

    Raises:
        ValueError: the model doesn't take such images.
    """
    if isinstance(model, MaskRCNN):
        heads = model.roi_heads
        regions = _Regions(nn.Sequential(heads.box_head, heads.box_predictor), 7, model.backbone.out_channels)
        masks = _Regions(
            nn.Sequential(heads.mask_head, heads.mask_predictor), 14, model.backbone.out_channels
        )
        # One region is an "image" of a few channels: the counter makes it of the right shape.
        return (
            count_macs(dense_part(model), image_size)
            + PROPOSALS * count_macs(regions, 7)
            + MASKED * count_macs(masks, 14)
        )
    return count_macs(dense_part(model), image_size)


def dense_part(model: nn.Module) -> nn.Module:
    """Returns the part of a model whose computation is the same for every image.

    Of a detector, these are backbone, pyramid and the head on all their cells; else it is the model itself.
    """
    if isinstance(model, RetinaNet):
        return _Dense(model.backbone, model.head)
    if isinstance(model, MaskRCNN):
        return _Dense(model.backbone, model.rpn.head)
    return model


class _Dense(nn.Module):
    """Backbone, pyramid and what is computed on every cell of its maps."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> object:
        return self.head(list(self.backbone(images).values()))


class _Regions(nn.Module):
    """A head on one region of the pyramid's maps."""

    def __init__(self, head: nn.Module, side: int, channels: int) -> None:
        super().__init__()
        self.head, self.side, self.channels = head, side, channels

    def forward(self, images: Tensor) -> object:
        return self.head(torch.empty(1, self.channels, self.side, self.side, device=images.device))
