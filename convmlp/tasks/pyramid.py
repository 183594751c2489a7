"""The feature pyramid (FPN, arXiv:1612.03144) over the feature maps of any hierarchical network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from convmlp.zoo import create_model


def create_body(
    name: str, strides: Sequence[int], *, weights: str | Path | None = None, **options: Any
) -> nn.Module:
    """A network of `convmlp.create_model` that returns its feature maps at exactly these strides, finest first.

    Args:
        name: e.g. "convmlp_s", "resnet50".
        strides: of 4, 8, 16, 32 those that are used; the network is cut after the last and has no head.
        weights: file of the classifier of this name, for `convmlp.weights.load_pretrained`. All its convolutions
            and linear layers must be found; norms that only the dense form of a network has keep their own values.
        options: further arguments of the model.

    Raises:
        ValueError: no such model, it has no maps of these strides (ViT, Mixer), or the weights don't fit.
    """
    with torch.device("meta"):
        found = list(_info(create_model(name, features_only=True, **options)).reduction())
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
        _load(body, create_model(name, pretrained_path=weights, **options), weights)
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
        self.fpn = FeaturePyramidNetwork(channels(body), out_channels, extra)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Finest first; names of extra maps are torchvision's."""
        maps = self.body(images)
        return self.fpn({str(place): map_ for place, map_ in enumerate(maps)})


def channels(body: nn.Module) -> list[int]:
    """Of each feature map, finest first."""
    return list(_info(body).channels())


def no_weight_decay(body: nn.Module, prefix: str) -> set[str]:
    """What the network under timm's feature extractor excludes from weight decay, by its names in a larger model."""
    inner = getattr(body, "model", body)
    exclude = getattr(inner, "no_weight_decay", None)
    own = "model." if inner is not body else ""
    return {f"{prefix}.{own}{name}" for name in exclude()} if exclude is not None else set()


def _info(body: nn.Module) -> Any:
    """timm's FeatureInfo."""
    return body.feature_info


def _load(body: nn.Module, classifier: nn.Module, path: str | Path) -> None:
    """Copy what the body has of the classifier, whose names timm's extractors prefix or flatten."""
    source = {_plain(name): value for name, value in classifier.state_dict().items()}
    own = body.state_dict()
    fitting = {
        name: source[_plain(name)]
        for name, value in own.items()
        if _plain(name) in source and source[_plain(name)].shape == value.shape
    }
    lost = [name for name in own.keys() - fitting.keys() if own[name].ndim > 1]
    if lost:
        raise ValueError(
            f"{path}: {len(lost)} of the backbone's {len(own)} entries are not among the classifier's, "
            f"e.g. {sorted(lost)[:3]}: it would train from scratch there"
        )
    body.load_state_dict(own | fitting)


def _plain(name: str) -> str:
    return name.removeprefix("model.").replace(".", "_")
