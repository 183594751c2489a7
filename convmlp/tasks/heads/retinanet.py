"""RetinaNet (arXiv:1708.02002) over a feature pyramid: torchvision's parts, with losses in evaluation, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from convmlp.tasks.heads.pyramid import Anchors, Pyramid, map_channels, pad_images

_STRIDES = (8, 16, 32, 64, 128)

Target = dict[str, Any]
Detected = dict[str, Tensor]
"""`boxes` [n, 4] left, top, right, bottom in the given image's pixels, `scores` [n], best first, `labels` [n], 0-based;
of Mask R-CNN also `masks` [n, 1, 28, 28], probabilities within the box."""


class RetinaNet(TorchvisionRetinaNet):
    """The detector of the ConvMLP and CycleMLP papers (mmdetection's, as in shared configurations).

    Maps of strides 8, 16, 32, and two more made of the last one's input; four convolutions a head; nine anchors a
    cell; focal loss (alpha 0.25, gamma 2) and L1; anchors are objects from IoU 0.5 on and background below 0.4.

    Args:
        backbone: a pyramid of strides 8 to 128.
        num_classes: labels are 0..num_classes - 1, there is no background class.
        anchor_scale: side of a level's smallest anchor, in strides. 4 as published; less for objects smaller than
            32 pixels.
    """

    body_strides = (8, 16, 32)
    class_heads = ("head.classification_head.cls_logits",)
    """Modules whose size depends on the number of classes, for `convmlp.weights`."""

    @staticmethod
    def coarser_maps(body: nn.Module, channels: int) -> ExtraFPNBlock:
        """Makes the maps of strides 64 and 128 of a body's last one, for a pyramid of so many channels."""
        return LastLevelP6P7(map_channels(body)[-1], channels)

    def __init__(self, backbone: Pyramid, num_classes: int, *, anchor_scale: float = 4.0) -> None:
        super().__init__(
            backbone,
            num_classes,
            anchor_generator=Anchors(_STRIDES, anchor_scale, octaves=3),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )
        self.num_classes = num_classes
        self.transform = nn.Identity()  # readers resize, the engine normalises

    def forward(
        self, images: Tensor | list[Tensor], targets: list[Target] | None = None
    ) -> tuple[dict[str, Tensor], list[Detected]]:
        """Losses by name (none without targets), and detections by image (none in training).

        Args:
            images: normalised, of any sizes.
            targets: `boxes` [n, 4] float32 left, top, right, bottom, and `labels` [n] int64.
        """
        padded = pad_images(images)
        features = list(self.backbone(padded.tensors).values())
        # Boxes in half precision would be whole pixels off.
        outputs = {name: value.float() for name, value in self.head(features).items()}
        anchors = self.anchor_generator(padded, features)
        losses = {} if targets is None else self.compute_loss(targets, outputs, anchors)
        if self.training:
            return losses, []
        return losses, self._detect(padded, features, outputs, anchors)

    @torch.no_grad()
    def _detect(
        self, padded: ImageList, features: list[Tensor], outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> list[Detected]:
        per_cell = self.anchor_generator.num_anchors_per_location()[0]
        counts = [maps.shape[-2] * maps.shape[-1] * per_cell for maps in features]
        return self.postprocess_detections(
            {name: list(torch.split(value, counts, dim=1)) for name, value in outputs.items()},
            [list(torch.split(image, counts)) for image in anchors],
            padded.image_sizes,
        )
