"""Building blocks of ConvMLP (Li, Hassani, Walton, Shi: "ConvMLP: Hierarchical Convolutional MLPs for
Vision", 2021, arXiv:2109.04454), named so that `state_dict` keys equal those of the authors' checkpoints.

Shape letters: B batch, C channels, H and W height and width. Modules take and give [B, C, H, W]; only
`ConvMLPBlock` works on [B, H, W, C]. With `channels_last` inputs and weights every permute is a free view.
"""

from typing import Literal

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from convmlp.models.backbone import BlockSequence

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
