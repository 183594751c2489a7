"""Detectors and segmenters that stand on a backbone; `create_dense_model` makes one by the name of its task.

Files in reading order:

    pyramid       The ground of detectors and segmenters: padded images, the feature pyramid, anchors
    retinanet     RetinaNet (arXiv:1708.02002) over a feature pyramid
    mask_rcnn     Mask R-CNN (arXiv:1703.06870) over a feature pyramid
    semantic_fpn  Semantic FPN (Panoptic Feature Pyramid Networks, arXiv:1901.02446)

May import: convmlp.weights, convmlp.zoo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convmlp.tasks.heads.mask_rcnn import MaskRCNN, create_mask_rcnn
from convmlp.tasks.heads.retinanet import RetinaNet, create_retinanet
from convmlp.tasks.heads.semantic_fpn import SemanticFPN, create_semantic_fpn

DENSE_TASKS = ("retinanet", "mask_rcnn", "semantic_fpn")
ANCHOR_SCALES = {"retinanet": 4.0, "mask_rcnn": 8.0}
"""Side of a level's smallest anchor, in strides, as published."""


def create_dense_model(
    task: str,
    name: str,
    num_classes: int,
    *,
    weights: str | Path | None = None,
    pyramid_channels: int = 256,
    anchor_scale: float | None = None,
    **options: Any,
) -> RetinaNet | MaskRCNN | SemanticFPN:
    """The model of one of `DENSE_TASKS` over the network `name`; see `convmlp.tasks.heads.pyramid.create_body`.

    Args:
        weights: file of the backbone's classifier.
        anchor_scale: of detectors; default: `ANCHOR_SCALES`.

    Raises:
        ValueError: no such task, the network has not the feature maps it needs, or the weights don't fit.
    """
    options |= {"weights": weights, "pyramid_channels": pyramid_channels}
    if task == "semantic_fpn":
        return create_semantic_fpn(name, num_classes, **options)
    if task not in ANCHOR_SCALES:
        raise ValueError(f"no task is named {task!r}: there are {', '.join(DENSE_TASKS)}")
    create = create_retinanet if task == "retinanet" else create_mask_rcnn
    scale = ANCHOR_SCALES[task] if anchor_scale is None else anchor_scale
    return create(name, num_classes, anchor_scale=scale, **options)
