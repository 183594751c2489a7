"""Anchors on exact strides and in float32, and images padded to one size: what detectors share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

RATIOS = (0.5, 1.0, 2.0)
"""Height by width of an anchor."""
DIVISIBLE = 32
"""Images are padded to multiples of this, the largest stride of a backbone."""


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
