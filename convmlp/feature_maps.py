"""The feature maps that a network makes of an image, stage by stage: what the ConvMLP paper's pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convmlp.weights import Weights, load_pretrained
from convmlp.zoo import create_model

_MOST = 4
_FINEST = 4
"""Stride of the first map that is taken, as in dense prediction."""


@dataclass(frozen=True)
class StageMap:
    """One map of one image: `values` [channels, H / stride, W / stride], float32 on the CPU; `layer` is the module that
    made it."""

    layer: str
    stride: int
    values: Tensor


def create_feature_extractor(
    name: str, *, weights: Weights | None = None, image_size: int | None = None, **options: Any
) -> nn.Module:
    """A network that returns up to four of its feature maps, finest first, in eval mode.

    Of networks with several strides these are the last map of each stride from 4 on; of those with one (Mixer, ViT),
    maps at a quarter, half, three quarters and the end of the depth.

    Args:
        name: e.g. "convmlp_s", "mixer_b16", "resnet50".
        weights: for `convmlp.weights.load_pretrained`: of a classifier, or of a detector or segmenter over the network.
        image_size: as in `convmlp.create_model`.
        options: further arguments of the model.

    Raises:
        ValueError: no such model, it tells no feature maps, or the weights don't fit.
    """
    with torch.device("meta"):
        infos = getattr(create_model(name, image_size=image_size, **options), "feature_info", None)
    if not infos:
        raise ValueError(
            f"model {name!r} tells no feature maps: choose another (timm lists them as features_only)"
        )
    wanted = _chosen([int(info["reduction"]) for info in infos])
    model = create_model(
        name, features_only=True, out_indices=tuple(wanted), image_size=image_size, **options
    )
    if weights is not None:
        load_pretrained(model, weights)
    return model.eval()


@torch.inference_mode()
def stage_maps(extractor: nn.Module, image: Tensor) -> list[StageMap]:
    """The maps of one normalised image [3, H, W], finest first.

    Raises:
        ValueError: the network doesn't take images of this size.
    """
    info: Any = extractor.feature_info
    maps = extractor(image[None])
    described = zip(info.module_name(), info.reduction(), maps, strict=True)
    return [StageMap(layer, int(stride), values[0].float().cpu()) for layer, stride, values in described]


def _chosen(strides: Sequence[int]) -> list[int]:
    """Places of the maps to show."""
    if len(set(strides)) == 1:
        count = min(_MOST, len(strides))
        return [round((number + 1) * len(strides) / count) - 1 for number in range(count)]
    last = {stride: place for place, stride in enumerate(strides) if stride >= _FINEST}
    return sorted(last.values())[-_MOST:]
