"""One registry and one way to make any model by name: this package's networks and all of timm's.

The networks by name: what each is made of, and what is published about it.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from convmlp.models.conv_mlp import ConvMLP
from convmlp.models.cycle_mlp import CycleMLP
from convmlp.models.mixer import Mixer
from convmlp.models.pure_mlp import PureMLP
from convmlp.weights import load_pretrained


@dataclass(frozen=True)
class Variant:
    """A named network: `model(**options)`; `weights` are the files published for it, by timm's tag."""

    model: type[nn.Module]
    options: Mapping[str, Any]
    summary: str
    weights: Mapping[str, str] = field(default_factory=dict)
    input_size: int = 224
    crop_pct: float = 0.875

    def pretrained_cfgs(self, name: str) -> dict[str, dict[str, Any]]:
        """timm's description of each weights file (or of the network without one), by "name.tag"."""
        published = self.weights or {"untrained": ""}
        return {f"{name}.{tag}": self._cfg(url) for tag, url in published.items()}

    def _cfg(self, url: str) -> dict[str, Any]:
        mixer = issubclass(self.model, Mixer)
        first_conv = {ConvMLP: "tokenizer.block.0", CycleMLP: "patch_embed.proj", Mixer: "stem.proj"}
        return {
            "url": url,
            "num_classes": 1000,
            "input_size": (3, self.input_size, self.input_size),
            "fixed_input_size": self.model in (Mixer, PureMLP),
            "crop_pct": self.crop_pct,
            "interpolation": "bicubic",
            "mean": IMAGENET_INCEPTION_MEAN if mixer else IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_INCEPTION_STD if mixer else IMAGENET_DEFAULT_STD,
            "first_conv": first_conv.get(self.model, "patch_embed"),
            "classifier": "head",
        }


def _conv_mlp(size: str, summary: str, **options: Any) -> Variant:
    url = f"https://shi-labs.com/projects/convmlp/checkpoints/convmlp_{size}_imagenet.pth"
    return Variant(ConvMLP, options, summary, {"shi_in1k": url}, crop_pct=0.9)


def _cycle_mlp(size: str, summary: str, **options: Any) -> Variant:
    url = f"https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_{size.upper()}.pth"
    return Variant(CycleMLP, options, summary, {"cycle_in1k": url})


def _mixer(num_blocks: int, embed_dim: int, patch_size: int, summary: str, timm_file: str = "") -> Variant:
    options = {"num_blocks": num_blocks, "embed_dim": embed_dim, "patch_size": patch_size}
    files = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"
    weights = {"goog_in21k_ft_in1k": f"{files}/{timm_file}"} if timm_file else {}
    return Variant(Mixer, options, summary, weights)


_TINY = {
    "stem_channels": 32,
    "conv_blocks": 1,
    "dims": (64, 128, 192),
    "blocks": (1, 1, 1),
    "drop_path_rate": 0.0,
}
_S = {"dims": (128, 256, 512), "blocks": (2, 4, 2), "mlp_ratios": (2, 2, 2)}
_M = {"dims": (128, 256, 512), "blocks": (3, 6, 3), "mlp_ratios": (3, 3, 3)}
_L = {"dims": (192, 384, 768), "blocks": (4, 8, 3), "mlp_ratios": (3, 3, 3)}
_CYCLE, _CYCLE_WIDE = (64, 128, 320, 512), (96, 192, 384, 768)

# Parameters with 1000 classes, multiply-accumulates at 224 px as published, ImageNet-1k top-1 as published.
VARIANTS: dict[str, Variant] = {
    "convmlp_tiny": Variant(
        ConvMLP, _TINY, "ours, for 8 to 32 px: 0.8 M parameters with 10 classes", {}, 32, 1.0
    ),
    "convmlp_s": _conv_mlp("s", "9.0 M, 2.4 G, 76.8 %", stem_channels=64, conv_blocks=2, **_S),
    "convmlp_m": _conv_mlp("m", "17.4 M, 3.9 G, 79.0 %", stem_channels=64, conv_blocks=3, **_M),
    "convmlp_l": _conv_mlp("l", "42.7 M, 9.9 G, 80.2 %", stem_channels=96, conv_blocks=3, **_L),
    "mixer_s32": _mixer(8, 512, 32, "19.1 M, 1.0 G"),
    "mixer_s16": _mixer(8, 512, 16, "18.5 M, 3.8 G"),
    "mixer_b32": _mixer(12, 768, 32, "60.3 M, 3.2 G"),
    "mixer_b16": _mixer(12, 768, 16, "59.9 M, 12.6 G, 76.4 %", "jx_mixer_b16_224-76587d61.pth"),
    "mixer_l32": _mixer(24, 1024, 32, "206.9 M, 11.3 G"),
    "mixer_l16": _mixer(24, 1024, 16, "208.2 M, 44.6 G, 71.8 %", "jx_mixer_l16_224-92f9adc4.pth"),
    "mixer_h14": _mixer(32, 1280, 14, "432.4 M, 121.1 G"),
    "cyclemlp_b1": _cycle_mlp(
        "b1", "15.2 M, 2.1 G, 78.9 %", dims=_CYCLE, blocks=(2, 2, 4, 2), mlp_ratios=(4, 4, 4, 4)
    ),
    "cyclemlp_b2": _cycle_mlp(
        "b2", "26.8 M, 3.9 G, 81.6 %", dims=_CYCLE, blocks=(2, 3, 10, 3), mlp_ratios=(4, 4, 4, 4)
    ),
    "cyclemlp_b3": _cycle_mlp(
        "b3", "38.4 M, 6.9 G, 82.4 %", dims=_CYCLE, blocks=(3, 4, 18, 3), mlp_ratios=(8, 8, 4, 4)
    ),
    "cyclemlp_b4": _cycle_mlp(
        "b4", "51.8 M, 10.1 G, 83.0 %", dims=_CYCLE, blocks=(3, 8, 27, 3), mlp_ratios=(8, 8, 4, 4)
    ),
    "cyclemlp_b5": _cycle_mlp(
        "b5", "75.7 M, 12.3 G, 83.2 %", dims=_CYCLE_WIDE, blocks=(3, 4, 24, 3), mlp_ratios=(4, 4, 4, 4)
    ),
    "pure_mlp_s": Variant(PureMLP, _S, "ConvMLP-S without convolutions, by our reading of the paper"),
    "pure_mlp_m": Variant(PureMLP, _M, "ConvMLP-M without convolutions, by our reading of the paper"),
    "pure_mlp_l": Variant(PureMLP, _L, "ConvMLP-L without convolutions, by our reading of the paper"),
}

# Also known under the spelling with an underscore.
ALIASES = {name.replace("cyclemlp", "cycle_mlp"): name for name in VARIANTS if name.startswith("cyclemlp")}

# What the papers compare with, as timm has it.
BASELINES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "regnetx_002",
    "regnetx_004",
    "regnetx_008",
    "regnetx_016",
    "regnetx_032",
    "regnety_002",
    "regnety_004",
    "regnety_008",
    "regnety_016",
    "regnety_032",
    "regnety_080",
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "vit_base_patch32_224",
    "vit_large_patch16_224",
)


# timm takes these from the module of the function that it registers.
default_cfgs = generate_default_cfgs(
    {tag: cfg for name, variant in VARIANTS.items() for tag, cfg in variant.pretrained_cfgs(name).items()}
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    variant = VARIANTS[name]
    if variant.model is CycleMLP and kwargs.get("features_only"):
        kwargs.setdefault("feature_norms", True)
    # None is every map; isotropic networks have one per block, of which timm's habit is the last three.
    out_indices = 3 if variant.model is Mixer else None
    return build_model_with_cfg(
        variant.model,
        name,
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        pretrained_filter_fn=_published_state,
        **({**variant.options} | kwargs),
    )


def _published_state(state: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A published file's weights for timm's strict loading: `pretrained=True` passes it a downloaded file."""
    state = state.get("model", state)
    optional = tuple(f"{prefix}." for prefix in getattr(model, "optional_weights", ()))
    if optional:
        own = model.state_dict()
        fresh = {key: value for key, value in own.items() if key.startswith(optional)}
        state = {key: value for key, value in state.items() if key in own} | fresh
    return state


def _entry_point(name: str, published_name: str) -> Callable[..., nn.Module]:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _build(published_name, pretrained, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = VARIANTS[published_name].summary
    return entry_point


for _name in (*VARIANTS, *ALIASES):
    register_model(_entry_point(_name, ALIASES.get(_name, _name)))


def list_models(baselines: bool = False) -> list[str]:
    """Names of this package's networks, by family and size; `timm.list_models()` lists all that can be made.

    Args:
        baselines: add the ResNets, RegNets and ViTs of timm that the papers compare with.
    """
    return [*VARIANTS, *(BASELINES if baselines else ())]


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    pretrained_path: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make one of this package's networks, or any other that timm knows, by name.

    Args:
        name: e.g. "convmlp_s", "mixer_b16", "cyclemlp_b1", "resnet18".
        num_classes: size of the head; 0 leaves it out.
        pretrained_path: a local file of weights for `convmlp.weights.load_pretrained`.
        image_size: of the images the model will see, in pixels; what Mixer, ViT and other networks of a fixed
            input size are made for (224 by default, as published).
        kwargs: passed to the model, e.g. `drop_path_rate=0.2`, `dims=(64, 128, 256)`, `features_only=True`.

    Raises:
        ValueError: no such model, an option or image size the model does not take, or a file that does not fit.
    """
    _check_name(name)
    if image_size is not None and _has_fixed_size(name):
        kwargs.setdefault("img_size", image_size)
    try:
        model = timm.create_model(name, num_classes=num_classes, **kwargs)
    except ValueError:
        raise
    except Exception as error:  # of options that they can't use networks raise nearly any type
        raise ValueError(f"model {name!r} does not take these options {sorted(kwargs)}: {error}") from error
    if image_size is not None:
        _check_size(name, model, image_size)
    if pretrained_path is not None:
        load_pretrained(model, pretrained_path)
    return model


def _check_name(name: str) -> None:
    has_tag = "." in name
    if timm.is_model(name) and (not has_tag or timm.models.is_model_pretrained(name)):
        return
    nearest = difflib.get_close_matches(name, list_models() + timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else f"ours are {', '.join(list_models())}"
    raise ValueError(f"no model is named {name!r}: {hint} (timm.list_models() lists all others)")


def _has_fixed_size(name: str) -> bool:
    cfg = timm.get_pretrained_cfg(ALIASES.get(name, name), allow_unregistered=True)
    return bool(cfg is not None and cfg.fixed_input_size)


def _check_size(name: str, model: nn.Module, image_size: int | tuple[int, int]) -> None:
    smallest = getattr(model, "min_image_size", 1)
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if min(sides) < smallest:
        raise ValueError(
            f"images of {sides[0]}x{sides[1]} px are too small for {name}, which needs {smallest}x{smallest} "
            "at least: enlarge them or choose another model"
        )
