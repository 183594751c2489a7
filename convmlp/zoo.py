"""The named ConvMLP networks, registered with timm, and the one way to make any model by name."""

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from convmlp.layers import StemStride
from convmlp.model import ConvMLP
from convmlp.weights import load_pretrained


@dataclass(frozen=True)
class ConvMLPVariant:
    """Shape of a ConvMLP; the fields are `ConvMLP`'s arguments of the same names."""

    stem_channels: int
    conv_blocks: int
    dims: tuple[int, ...]
    blocks: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    stem_stride: StemStride = 4
    drop_path_rate: float = 0.1


# S, M and L are the published ones (arXiv:2109.04454): 9,022,920, 17,410,504 and 42,728,440 parameters.
# Tiny is ours: for 8 to 32 px images on a CPU.
VARIANTS = {
    "convmlp_tiny": ConvMLPVariant(
        32, 1, dims=(64, 128, 192), blocks=(1, 1, 1), mlp_ratios=(2, 2, 2), drop_path_rate=0.0
    ),
    "convmlp_s": ConvMLPVariant(64, 2, dims=(128, 256, 512), blocks=(2, 4, 2), mlp_ratios=(2, 2, 2)),
    "convmlp_m": ConvMLPVariant(64, 3, dims=(128, 256, 512), blocks=(3, 6, 3), mlp_ratios=(3, 3, 3)),
    "convmlp_l": ConvMLPVariant(96, 3, dims=(192, 384, 768), blocks=(4, 8, 3), mlp_ratios=(3, 3, 3)),
}


def _cfg(size: int, crop_pct: float, url: str = "") -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "tokenizer.block.0",
        "classifier": "head",
    }


_AUTHORS_FILES = "https://shi-labs.com/projects/convmlp/checkpoints"

default_cfgs = generate_default_cfgs(
    {
        "convmlp_tiny.untrained": _cfg(32, crop_pct=1.0),
        "convmlp_s.shi_in1k": _cfg(224, 0.9, f"{_AUTHORS_FILES}/convmlp_s_imagenet.pth"),
        "convmlp_m.shi_in1k": _cfg(224, 0.9, f"{_AUTHORS_FILES}/convmlp_m_imagenet.pth"),
        "convmlp_l.shi_in1k": _cfg(224, 0.9, f"{_AUTHORS_FILES}/convmlp_l_imagenet.pth"),
    }
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        ConvMLP,
        name,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **(asdict(VARIANTS[name]) | kwargs),
    )


@register_model
def convmlp_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvMLP for images of 32 px, of our own shape (no published weights)."""
    return _build("convmlp_tiny", pretrained, **kwargs)


@register_model
def convmlp_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvMLP-S: 9.0 M parameters, 2.4 G multiply-accumulates at 224 px, 76.8 % ImageNet top-1 published."""
    return _build("convmlp_s", pretrained, **kwargs)


@register_model
def convmlp_m(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvMLP-M: 17.4 M parameters, 3.9 G multiply-accumulates at 224 px, 79.0 % ImageNet top-1 published."""
    return _build("convmlp_m", pretrained, **kwargs)


@register_model
def convmlp_l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvMLP-L: 42.7 M parameters, 9.9 G multiply-accumulates at 224 px, 80.2 % ImageNet top-1 published."""
    return _build("convmlp_l", pretrained, **kwargs)


def _is_known(name: str) -> bool:
    has_tag = "." in name
    return timm.is_model(name) and (not has_tag or timm.models.is_model_pretrained(name))


def list_models() -> list[str]:
    """Names of this package's networks, smallest first; `timm.list_models()` lists all that can be made."""
    return list(VARIANTS)


def create_model(
    name: str, num_classes: int = 1000, *, pretrained_path: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """Make a ConvMLP, or any other model that timm knows, by name.

    Args:
        name: e.g. "convmlp_s", "resnet18".
        num_classes: size of the head; 0 leaves it out.
        pretrained_path: a local `.pth` or `.safetensors` file for `convmlp.weights.load_pretrained`.
        kwargs: passed to the model, e.g. `drop_path_rate=0.2`, `dims=(64, 128, 256)`.

    Raises:
        ValueError: no such model, an option the model does not take, or a file that does not fit.
    """
    if not _is_known(name):
        nearest = difflib.get_close_matches(name, list_models() + timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else f"ours are {', '.join(list_models())}"
        raise ValueError(f"no model is named {name!r}: {hint} (timm.list_models() lists all others)")
    try:
        model = timm.create_model(name, num_classes=num_classes, **kwargs)
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these options {sorted(kwargs)}: {error}") from error
    if pretrained_path is not None:
        load_pretrained(model, pretrained_path)
    return model
