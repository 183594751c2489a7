"""Mask R-CNN (arXiv:1703.06870) over a feature pyramid: torchvision's parts, with losses in evaluation, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from convmlp.tasks.heads.pyramid import RATIOS, Anchors, Pyramid, pad_images
from convmlp.tasks.heads.retinanet import Detected, Target

_STRIDES = (4, 8, 16, 32, 64)
_BOX_FEATURES, _MASK_FEATURES = 1024, 256


class MaskRCNN(TorchvisionMaskRCNN):
    """The instance segmenter of the ConvMLP paper.

    Maps of strides 4, 8, 16, 32 and 64; proposals from three anchors a cell, 2,000 a level before and 1,000 after NMS;
    boxes from 7 x 7 samples and two linear layers of 1,024; masks from 14 x 14 samples and four convolutions.

    Args:
        backbone: a pyramid of strides 4 to 64.
        num_classes: labels are 0..num_classes - 1; the background class is added within.
        anchor_scale: side of a level's square anchor, in strides; 8 as published.
    """

    body_strides = (4, 8, 16, 32)
    class_heads = (
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    )
    """Modules whose size depends on the number of classes, for `convmlp.weights`."""

    @staticmethod
    def coarser_maps(body: nn.Module, channels: int) -> ExtraFPNBlock:
        """Makes the map of stride 64 of a pyramid's last one."""
        return LastLevelMaxPool()

    def __init__(self, backbone: Pyramid, num_classes: int, *, anchor_scale: float = 8.0) -> None:
        super().__init__(
            backbone,
            rpn_anchor_generator=Anchors(_STRIDES, anchor_scale),
            rpn_head=_ProposalHead(backbone.out_channels, len(RATIOS)),
            rpn_post_nms_top_n_train=1000,
            box_predictor=_BoxPredictor(_BOX_FEATURES, num_classes),
            mask_predictor=_MaskPredictor(_MASK_FEATURES, _MASK_FEATURES, num_classes),
            box_score_thresh=0.05,
            box_nms_thresh=0.5,
            box_detections_per_img=100,
        )
        self.num_classes = num_classes
        self.transform = nn.Identity()  # readers resize, the engine normalises

    def forward(
        self, images: Tensor | list[Tensor], targets: list[Target] | None = None
    ) -> tuple[dict[str, Tensor], list[Detected]]:
        """Losses by name (none without targets), and detections by image (none in training).

        The loss samples proposals from torch's generator; in evaluation always alike, and the generator is left as
        it was.

        Args:
            images: normalised, of any sizes.
            targets: `boxes` [n, 4] float32 left, top, right, bottom, `labels` [n] int64 and `masks` [n, H, W],
                0 and 1, of the image's size.
        """
        padded = pad_images(images)
        features = self.backbone(padded.tensors)
        inner = [target | {"labels": target["labels"] + 1} for target in targets] if targets else None
        if self.training:
            return self._losses(padded, features, inner), []
        proposals, _ = self.rpn(padded, features)
        found, _ = self.roi_heads(features, proposals, padded.image_sizes)
        detected = [one | {"labels": one["labels"] - 1} for one in found]
        if inner is None:
            return {}, detected
        device = padded.tensors.device
        with (
            _as_in_training(self.rpn, self.roi_heads),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(0)
            return self._losses(padded, features, inner), detected

    def _losses(self, padded: Any, features: dict[str, Tensor], targets: Any) -> dict[str, Tensor]:
        proposals, first = self.rpn(padded, features, targets)
        _, second = self.roi_heads(features, proposals, padded.image_sizes, targets)
        return {**first, **second}


class _ProposalHead(RPNHead):
    """In float32: proposals in half precision would be whole pixels off."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, boxes = super().forward(x)
        return [score.float() for score in scores], [box.float() for box in boxes]


class _BoxPredictor(nn.Module):
    """[N, features] → scores [N, classes + 1] and boxes [N, 4 (classes + 1)], float32; the background's box is 0, not
    learnt."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, num_classes + 1)
        self.bbox_pred = nn.Linear(features, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x).float(), F.pad(self.bbox_pred(x).float(), (4, 0))


class _MaskPredictor(MaskRCNNPredictor):
    """[N, features, 14, 14] → mask logits [N, classes + 1, 28, 28], float32; the background's are 0, not learnt."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x).float(), (0, 0, 0, 0, 1, 0))


@contextmanager
def _as_in_training(*modules: nn.Module) -> Iterator[None]:
    """These modules alone, not those within: what they sample and keep differs in training, their layers don't."""
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module in modules:
            module.training = False
