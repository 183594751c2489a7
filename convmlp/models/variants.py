"""The networks by name: what each is made of, and what is published about it."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

# Mean and standard deviation of ImageNet's channels, and of Inception's pixels in -1 to 1, by timm's names.
IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_INCEPTION_MEAN = IMAGENET_INCEPTION_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Variant:
    """A named network: `model(**options)`; `weights` are the files published for it, by timm's tag."""

    network: str
    """Name of its class in `convmlp.models`."""
    options: Mapping[str, Any]
    summary: str
    weights: Mapping[str, str] = field(default_factory=dict)
    input_size: int = 224
    crop_pct: float = 0.875

    @property
    def model(self) -> type[nn.Module]:
        """Its class. The import waits until it is asked for: Mixer's is timm's, whose package takes seconds."""
        module = importlib.import_module(f"convmlp.models.{_FILES[self.network]}")
        return getattr(module, self.network)

    @property
    def has_fixed_size(self) -> bool:
        """Whether it is made for images of one size (`img_size`)."""
        return self.network in ("Mixer", "PureMLP")

    def pretrained_cfgs(self, name: str) -> dict[str, dict[str, Any]]:
        """timm's description of each weights file (or of the network without one), by "name.tag"."""
        published = self.weights or {"untrained": ""}
        return {f"{name}.{tag}": self._cfg(url) for tag, url in published.items()}

    def _cfg(self, url: str) -> dict[str, Any]:
        mixer = self.network == "Mixer"
        first_conv = {"ConvMLP": "tokenizer.block.0", "CycleMLP": "patch_embed.proj", "Mixer": "stem.proj"}
        return {
            "url": url,
            "num_classes": 1000,
            "input_size": (3, self.input_size, self.input_size),
            "fixed_input_size": self.has_fixed_size,
            "crop_pct": self.crop_pct,
            "interpolation": "bicubic",
            "mean": IMAGENET_INCEPTION_MEAN if mixer else IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_INCEPTION_STD if mixer else IMAGENET_DEFAULT_STD,
            "first_conv": first_conv.get(self.network, "patch_embed"),
            "classifier": "head",
        }


def _conv_mlp(size: str, summary: str, **options: Any) -> Variant:
    url = f"https://shi-labs.com/projects/convmlp/checkpoints/convmlp_{size}_imagenet.pth"
    return Variant("ConvMLP", options, summary, {"shi_in1k": url}, crop_pct=0.9)


def _cycle_mlp(size: str, summary: str, **options: Any) -> Variant:
    url = f"https://github.com/ShoufaChen/CycleMLP/releases/download/v0.1/CycleMLP_{size.upper()}.pth"
    return Variant("CycleMLP", options, summary, {"cycle_in1k": url})


def _mixer(num_blocks: int, embed_dim: int, patch_size: int, summary: str, timm_file: str = "") -> Variant:
    options = {"num_blocks": num_blocks, "embed_dim": embed_dim, "patch_size": patch_size}
    files = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"
    weights = {"goog_in21k_ft_in1k": f"{files}/{timm_file}"} if timm_file else {}
    return Variant("Mixer", options, summary, weights)


_FILES = {"ConvMLP": "conv_mlp", "CycleMLP": "cycle_mlp", "Mixer": "mixer", "PureMLP": "pure_mlp"}

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
        "ConvMLP", _TINY, "ours, for 8 to 32 px: 0.8 M parameters with 10 classes", {}, 32, 1.0
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
    "pure_mlp_s": Variant("PureMLP", _S, "ConvMLP-S without convolutions, by our reading of the paper"),
    "pure_mlp_m": Variant("PureMLP", _M, "ConvMLP-M without convolutions, by our reading of the paper"),
    "pure_mlp_l": Variant("PureMLP", _L, "ConvMLP-L without convolutions, by our reading of the paper"),
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
