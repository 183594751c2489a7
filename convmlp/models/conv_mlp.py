"""ConvMLP (arXiv:2109.04454) with timm's model interface.

The published networks are values of this class: see `convmlp.zoo`.

Building blocks of ConvMLP (Li, Hassani, Walton, Shi: "ConvMLP: Hierarchical Convolutional MLPs for
Vision", 2021, arXiv:2109.04454), named so that `state_dict` keys equal those of the authors' checkpoints.

Shape letters: B batch, C channels, H and W height and width. Modules take and give [B, C, H, W]; only
`ConvMLPBlock` works on [B, H, W, C]. With `channels_last` inputs and weights every permute is a free view.
"""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from convmlp.models.backbone import BlockSequence, HierarchicalBackbone, check_stages, linear_rates
from convmlp.models.layers import DropPath, Mlp

StemStride = Literal[2, 4]


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    """Padded so that stride 1 keeps the size and stride 2 maps a side n to ceil(n / 2)."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def downsample(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The 3x3 stride-2 convolution between stages: no norm, no activation; a side n becomes ceil(n / 2)."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)


class ConvTokenizer(nn.Module):
    """[B, in_chans, H, W] → [B, channels, H / stem_stride, W / stem_stride], sizes rounded up.

    Three 3x3 convolutions (the first of stride 2) and, as published (`stem_stride=4`), a 3x3 max-pool of
    stride 2. `stem_stride=2` leaves the pool out, for images of about 32 px.
    """

    def __init__(self, in_chans: int, channels: int, stem_stride: StemStride) -> None:
        super().__init__()
        layers = [
            *_conv_bn_relu(in_chans, channels // 2, kernel_size=3, stride=2),
            *_conv_bn_relu(channels // 2, channels // 2, kernel_size=3),
            *_conv_bn_relu(channels // 2, channels, kernel_size=3),
        ]
        if stem_stride == 4:
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ConvStage(nn.Module):
    """Residual bottlenecks (1x1, 3x3, 1x1; the middle is the wide part), then a downsampling convolution.

    [B, channels, H, W] → [B, out_channels, ceil(H / 2), ceil(W / 2)]. The last ReLU of a bottleneck is
    inside the branch: nothing follows the addition.
    """

    def __init__(self, channels: int, out_channels: int, num_blocks: int) -> None:
        super().__init__()
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(
                *_conv_bn_relu(channels, out_channels, kernel_size=1),
                *_conv_bn_relu(out_channels, out_channels, kernel_size=3),
                *_conv_bn_relu(out_channels, channels, kernel_size=1),
            )
            for _ in range(num_blocks)
        )
        self.downsample = downsample(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.conv_blocks:
            x = x + block(x)
        return self.downsample(x)


class ConvMLPBlock(nn.Module):
    """Channel MLP, depthwise 3x3 convolution, channel MLP, on [B, H, W, dim]; the shape is kept.

    Both MLPs are residual and share one stochastic depth rate; the depthwise convolution between them is
    neither residual nor biased.
    """

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.channel_mlp1 = Mlp(dim, hidden)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.connect = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.connect_norm = nn.LayerNorm(dim)
        self.channel_mlp2 = Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.channel_mlp1(self.norm1(x)))
        x = self.connect(self.connect_norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.drop_path(self.channel_mlp2(self.norm2(x)))


class _MlpDownsample(nn.Module):
    """Holds the stage's downsampling convolution under the authors' two-level name."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.downsample = downsample(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x)


class ConvMLPStage(BlockSequence):
    """Conv-MLP blocks, then a downsampling convolution to `out_dim` channels (none if `out_dim` is None).

    [B, dim, H, W] → [B, out_dim, ceil(H / 2), ceil(W / 2)], or [B, dim, H, W].
    `drop_path_rates` holds one rate per block.
    """

    def __init__(self, dim: int, out_dim: int | None, mlp_ratio: float, drop_path_rates: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvMLPBlock(dim, mlp_ratio, rate) for rate in drop_path_rates)
        self.downsample_mlp = nn.Identity() if out_dim is None else _MlpDownsample(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample_mlp(self.run(list(self.blocks), x))


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
