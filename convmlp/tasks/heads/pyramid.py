"""The ground of detectors and segmenters: images padded to one size, a feature pyramid (FPN, arXiv:1612.03144) over the
feature maps of any hierarchical network, and anchors on exact strides and in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from convmlp.weights import Weights, load_pretrained
from convmlp.zoo import create_model

RATIOS = (0.5, 1.0, 2.0)
"""Height by width of an anchor."""
DIVISIBLE = 32
"""Images are padded to multiples of this, the largest stride of a backbone."""


def create_body(
    name: str, strides: Sequence[int], *, weights: Weights | None = None, **options: Any
) -> nn.Module:
    """A network of `convmlp.create_model` that returns its feature maps at exactly these strides, finest first.

    Args:
        name: e.g. "convmlp_s", "resnet50".
        strides: of 4, 8, 16, 32 those that are used; the network is cut after the last and has no head.
        weights: of a classifier of this name, or of a detector or segmenter over it, for
            `convmlp.weights.load_pretrained`; norms that only the dense form of a network has keep their own values.
        options: further arguments of the model.

    Raises:
        ValueError: no such model, it has no maps of these strides (ViT) or takes one image size only (Mixer, the pure
            MLP), or the weights don't fit.
    """
    with torch.device("meta"):
        plain = create_model(name, features_only=True, **options)
    if (size := getattr(getattr(plain, "model", plain), "fixed_image_size", None)) is not None:
        raise ValueError(
            f"model {name!r} takes images of one size only ({size[0]}x{size[1]} pixels), detection and segmentation "
            "have images of all sizes: choose ConvMLP, CycleMLP, ResNet or RegNet"
        )
    found = list(_info(plain).reduction())
    missing = [stride for stride in strides if stride not in found]
    if missing:
        raise ValueError(
            f"model {name!r} has feature maps of strides {found}, detection and segmentation need {list(strides)}: "
            "choose a hierarchical network (ConvMLP, CycleMLP, ResNet, RegNet)"
        )
    # Of several maps of a stride the last has seen most of the network.
    places = [len(found) - 1 - found[::-1].index(stride) for stride in strides]
    body: nn.Module = create_model(name, features_only=True, out_indices=tuple(places), **options)
    if weights is not None:
        load_pretrained(body, weights)
    return body


class Pyramid(nn.Module):
    """[B, 3, H, W] → maps [B, out_channels, H / stride, W / stride] by name ("0" is the finest).

    Args:
        body: from `create_body`.
        out_channels: of every map.
        extra: makes coarser maps of the last ones.
    """

    def __init__(self, body: nn.Module, out_channels: int = 256, extra: ExtraFPNBlock | None = None) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.fpn = FeaturePyramidNetwork(map_channels(body), out_channels, extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Finest first; names of extra maps are torchvision's."""
        maps = self.body(images)
        return self.fpn({str(place): map_ for place, map_ in enumerate(maps)})


def map_channels(body: nn.Module) -> list[int]:
    """Of each feature map, finest first."""
    return list(_info(body).channels())


def no_weight_decay(body: nn.Module, prefix: str) -> set[str]:
    """Returns the parameters that the network under timm's feature extractor excludes from weight decay, by their names
    in a larger model."""
    inner = getattr(body, "model", body)
    exclude = getattr(inner, "no_weight_decay", None)
    own = "model." if inner is not body else ""
    return {f"{prefix}.{own}{name}" for name in exclude()} if exclude is not None else set()


def _info(body: nn.Module) -> Any:
    """timm's FeatureInfo."""
    return body.feature_info


class Anchors(AnchorGenerator):
    """torchvision's anchors, but at each level's own stride, and never in half precision.

    (torchvision divides the padded image by the map, which is 61 instead of 64 for 13 cells on 800 pixels, and takes
    the maps' dtype, which in bfloat16 places a box at 1,000 pixels to the next 8.)

    Args:
        strides: pixels between the anchors of a level, finest first.
        scale: side of a level's smallest square anchor, in strides.
        octaves: sizes of a level, each 2^(1 / octaves) times the one before.
    """

    def __init__(self, strides: Sequence[int], scale: float, octaves: int = 1) -> None:
        if scale <= 0:
            raise ValueError(f"anchor_scale must be positive, not {scale}")
        self.strides = tuple(strides)
        sizes = tuple(
            tuple(scale * stride * 2 ** (step / octaves) for step in range(octaves)) for stride in strides
        )
        super().__init__(sizes, (RATIOS,) * len(sizes))

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors of every image, [cells x anchors, 4] left, top, right, bottom; all levels in one tensor."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors([list(maps.shape[-2:]) for maps in feature_maps], steps))
        return [anchors for _ in image_list.image_sizes]


def pad_images(images: Tensor | list[Tensor]) -> ImageList:
    """Images [3, H, W] in one tensor of the largest height and width, rounded up to multiples of 32.

    Added pixels are 0 (the mean) at the right and the bottom; the images' memory layout is kept.
    """
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = (DIVISIBLE * math.ceil(max(side) / DIVISIBLE) for side in zip(*sizes, strict=True))
    if isinstance(images, Tensor) and sizes[0] == (height, width):
        return ImageList(images, sizes)
    first = images[0]
    layout = torch.channels_last if first.stride(0) == 1 else torch.contiguous_format
    padded = torch.empty(
        (len(sizes), 3, height, width), dtype=first.dtype, device=first.device, memory_format=layout
    ).zero_()
    for place, (image, (high, wide)) in enumerate(zip(images, sizes, strict=True)):
        padded[place, :, :high, :wide] = image
    return ImageList(padded, sizes)
