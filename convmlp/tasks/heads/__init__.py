"""Detectors and segmenters that stand on a backbone; `create_dense_model` makes one by the name of its task.

Files in reading order:

    pyramid       The ground of detectors and segmenters: padded images, the feature pyramid, anchors
    retinanet     RetinaNet (arXiv:1708.02002) over a feature pyramid
    mask_rcnn     Mask R-CNN (arXiv:1703.06870) over a feature pyramid
    semantic_fpn  Semantic FPN (Panoptic Feature Pyramid Networks, arXiv:1901.02446)

May import: convmlp.weights, convmlp.zoo.
"""

from __future__ import annotations

from typing import Any

from convmlp.tasks.heads.mask_rcnn import MaskRCNN
from convmlp.tasks.heads.pyramid import Pyramid, create_body
from convmlp.tasks.heads.retinanet import RetinaNet
from convmlp.tasks.heads.semantic_fpn import SemanticFPN
from convmlp.weights import Weights

ANCHOR_SCALES = {"retinanet": 4.0, "mask_rcnn": 8.0}
"""Side of a level's smallest anchor, in strides, as published."""


def create_dense_model(
    task: str,
    name: str,
    num_classes: int,
    *,
    weights: Weights | None = None,
    pyramid_channels: int = 256,
    anchor_scale: float | None = None,
    **options: Any,
) -> RetinaNet | MaskRCNN | SemanticFPN:
    """The model of a task (retinanet, mask_rcnn or semantic_fpn) over the network `name`.

    Args:
        weights, options: see `convmlp.tasks.heads.pyramid.create_body`.
        pyramid_channels: of every map.
        anchor_scale: of detectors; default: `ANCHOR_SCALES`.

    Raises:
        ValueError: no such task, the network has not the feature maps it needs, or the weights don't fit.
    """
    if task == "semantic_fpn":
        body = create_body(name, SemanticFPN.body_strides, weights=weights, **options)
        return SemanticFPN(Pyramid(body, pyramid_channels), num_classes)
    if task not in ANCHOR_SCALES:
        raise ValueError(f"no task is named {task!r}: there are {', '.join(ANCHOR_SCALES)}, semantic_fpn")
    detector = RetinaNet if task == "retinanet" else MaskRCNN
    body = create_body(name, detector.body_strides, weights=weights, **options)
    pyramid = Pyramid(body, pyramid_channels, detector.coarser_maps(body, pyramid_channels))
    scale = ANCHOR_SCALES[task] if anchor_scale is None else anchor_scale
    return detector(pyramid, num_classes, anchor_scale=scale)
