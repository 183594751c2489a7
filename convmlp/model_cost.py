"""The cost of networks and of tasks' whole models: parameters, and multiply-accumulates by the papers' definition."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Numbers in the module's parameters, each shared one once; buffers such as BatchNorm's aren't counted."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def count_macs(model: nn.Module, image_size: int | tuple[int, int] = 224, batch_size: int = 1) -> int:
    """Multiply-accumulates of one image's way through `model`: convolutions and matrix products.

    This is what the papers call "MACs" (ConvMLP) and "FLOPs" (CycleMLP, Mixer): a multiplication and the
    addition after it are one, and a CycleFC is the 1x1 convolution it amounts to. The published figures come
    from fvcore, which adds a pseudo-cost for norms: 0.1 to 0.6 % more than this. Nothing is computed and no
    memory taken: the count runs on the meta device, in evaluation mode; the model stays as it is.

    Args:
        image_size: pixels, one side or (height, width).
        batch_size: images at a time; the result is per image.

    Raises:
        ValueError: the model doesn't take such images.
    """
    from torch.utils.flop_counter import FlopCounterMode  # with triton, 0.3 s

    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    on_meta = {name: _to_meta(t) for name, t in chain(model.named_parameters(), model.named_buffers())}
    images = torch.empty(batch_size, 3, height, width, device="meta")
    # Without fused attention its two matrix products are seen as what they are.
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        torch.func.functional_call(model, on_meta, (images,))
    return counter.get_total_flops() // (2 * batch_size)


def _to_meta(tensor: Tensor) -> Tensor:
    # The images are float32: weights of another floating type have to match them.
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, device="meta", dtype=dtype)


PROPOSALS, MASKED = 1000, 100
"""Of Mask R-CNN: boxes that are looked at and objects that get a mask, at most and as counted (mmdetection's habit)."""


def count_task_macs(model: nn.Module, image_size: int | tuple[int, int]) -> int:
    """Multiply-accumulates of one image by the definition of `count_macs`, of any task's model.

    Detectors: backbone, pyramid and heads on every anchor; of Mask R-CNN the heads on 1,000 proposals and the masks of
    100 objects. Sampling of regions and NMS are no matrix products and don't count.

    Args:
        image_size: pixels, one side or (height, width).

    Raises:
        ValueError: the model doesn't take such images.
    """
    if (detector := _as_a("mask_rcnn", "MaskRCNN", model)) is not None:
        heads, width = detector.roi_heads, detector.backbone.out_channels
        regions = _Regions(nn.Sequential(heads.box_head, heads.box_predictor), 7, width)
        masks = _Regions(nn.Sequential(heads.mask_head, heads.mask_predictor), 14, width)
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
    if (detector := _as_a("retinanet", "RetinaNet", model)) is not None:
        return _Dense(detector.backbone, detector.head)
    if (detector := _as_a("mask_rcnn", "MaskRCNN", model)) is not None:
        return _Dense(detector.backbone, detector.rpn.head)
    return model


def _as_a(file: str, kind: str, model: nn.Module) -> Any:
    """The model if it is a detector of this class of `convmlp.tasks.heads`, else None. Where the file isn't imported
    there is no such model; importing it brings torchvision along, seconds that a classifier is spared."""
    heads = sys.modules.get(f"convmlp.tasks.heads.{file}")
    return model if heads is not None and isinstance(model, getattr(heads, kind)) else None


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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode; afterwards each module is in the mode it was in."""
    was_training: dict[Any, bool] = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training
