"""ConvMLP (arXiv:2109.04454) with timm's model interface.

The published networks are values of this class: see `convmlp.zoo`.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from convmlp.models.backbone import HierarchicalBackbone, check_stages, linear_rates
from convmlp.models.conv_mlp_layers import ConvMLPStage, ConvStage, ConvTokenizer, StemStride


class ConvMLP(HierarchicalBackbone):
    """Convolutional tokenizer, convolution stage, stages of Conv-MLP blocks, LayerNorm, mean, linear head.

    [B, in_chans, H, W] → [B, num_classes], for any H and W >= 8 (4 with `stem_stride=2`): odd sizes are rounded
    up at each stride. `num_classes=0` leaves the head out: the output is the pooled feature [B, dims[-1]].
    Feature maps: the tokenizer's, the convolution stage's, and every stage's but the next-to-last, whose output
    has the last stage's stride.

    Args:
        stem_channels: channels after the tokenizer (even).
        conv_blocks: residual bottlenecks in the convolution stage.
        dims: channels per Conv-MLP stage (two or more); dims[0] is also the convolution stage's width.
        blocks: Conv-MLP blocks per stage.
        mlp_ratios: hidden width of the channel MLPs, as a multiple of the stage's channels.
        stem_stride: 4 as published, or 2 (tokenizer without max-pool) for images of about 32 px.
        drop_path_rate: highest stochastic depth rate, in [0, 1). As published, rates rise linearly from 0
            and start again in each stage.

    Raises:
        ValueError: an argument is out of its range or the per-stage sequences differ in length.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        stem_channels: int = 64,
        conv_blocks: int = 2,
        dims: Sequence[int] = (128, 256, 512),
        blocks: Sequence[int] = (2, 4, 2),
        mlp_ratios: Sequence[float] = (2, 2, 2),
        stem_stride: StemStride = 4,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_stages(dims=dims, blocks=blocks, mlp_ratios=mlp_ratios)
        _check_stem(stem_channels, stem_stride)
        self.num_classes, self.num_features, self.in_chans = num_classes, dims[-1], in_chans
        self.min_image_size = stem_stride * 2  # one position of the first Conv-MLP stage
        self.feature_info = _feature_info(stem_channels, dims, stem_stride)

        self.tokenizer = ConvTokenizer(in_chans, stem_channels, stem_stride)
        self.conv_stages: nn.Module = ConvStage(stem_channels, dims[0], conv_blocks)
        self.stages = nn.ModuleList(
            ConvMLPStage(dim, out_dim, ratio, linear_rates(drop_path_rate, depth))
            for dim, out_dim, ratio, depth in zip(dims, [*dims[1:], None], mlp_ratios, blocks, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.head = self.make_head(num_classes)
        self.apply(_init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters for layer-wise learning rates."""
        blocks = (
            [(r"^stages\.(\d+)", None)]
            if coarse
            else [
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.downsample_mlp", (0,)),
                (r"^norm", (99999,)),
            ]
        )
        return {"stem": r"^tokenizer|^conv_stages", "blocks": blocks}

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Tokenizer, convolution stage, Conv-MLP stages."""
        stages = [(f"stages.{i}", stage) for i, stage in enumerate(self.stages)]
        return [("tokenizer", self.tokenizer), ("conv_stages", self.conv_stages), *stages]

    def keep_parts(self, count: int) -> None:
        """Drop the parts after the first `count`."""
        self.stages = self.stages[: max(0, count - 2)]
        if count < 2:
            self.conv_stages = nn.Identity()

    def init_head(self, head: nn.Linear) -> None:
        """Fill a fresh head as the authors do."""
        _init_weights(head)


def _feature_info(stem_channels: int, dims: Sequence[int], stem_stride: int) -> list[dict[str, Any]]:
    """timm's description of the maps: tokenizer, convolution stage, every stage but the next-to-last."""
    info = [
        {"num_chs": stem_channels, "reduction": stem_stride, "module": "tokenizer"},
        {"num_chs": dims[0], "reduction": stem_stride * 2, "module": "conv_stages"},
    ]
    last = len(dims) - 1
    for i in range(len(dims)):
        if i != last - 1:
            halvings = min(i + 1, last)
            reduction = stem_stride * 2 * 2**halvings
            info.append({"num_chs": dims[halvings], "reduction": reduction, "module": f"stages.{i}"})
    return info


def _check_stem(stem_channels: int, stem_stride: int) -> None:
    if stem_channels < 2 or stem_channels % 2:
        raise ValueError(f"stem_channels must be even and positive, not {stem_channels}")
    if stem_stride not in (2, 4):
        raise ValueError(f"stem_stride must be 2 or 4, not {stem_stride}")


def _init_weights(module: nn.Module) -> None:
    """The published initialisation; convolution biases keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
