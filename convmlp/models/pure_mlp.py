"""The pure-MLP baseline that ConvMLP is measured against (arXiv:2109.04454): ConvMLP without a convolution.

The paper's figures compare with such a network, but its code and exact shape were never published. This is our
reading, part by part: the tokenizer and the convolution stage become one linear patch embedding of their stride;
in each block a spatial MLP between the two channel MLPs takes the place of the depthwise convolution; between
stages, 2x2 neighbours are concatenated and projected. The spatial MLP is as wide as half the channels, Mixer's
rule. It ties the network to one image size, which is what ConvMLP does away with.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from convmlp.models.backbone import (
    BlockSequence,
    HierarchicalBackbone,
    check_fixed_size,
    check_patches,
    check_stages,
    linear_rates,
)
from convmlp.models.layers import DropPath, Mlp, height_width


class PureMLPBlock(nn.Module):
    """Channel MLP, spatial MLP, channel MLP, each residual after a LayerNorm, on [B, H, W, dim]."""

    def __init__(self, dim: int, num_positions: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.channel_mlp1 = Mlp(dim, hidden)
        self.spatial_norm = nn.LayerNorm(dim)
        self.spatial_mlp = Mlp(num_positions, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mlp2 = Mlp(dim, hidden)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.channel_mlp1(self.norm1(x)))
        positions = self.spatial_norm(x).flatten(1, 2).transpose(1, 2)  # [B, dim, H W]
        x = x + self.drop_path(self.spatial_mlp(positions).transpose(1, 2).reshape(x.shape))
        return x + self.drop_path(self.channel_mlp2(self.norm2(x)))


class PureMLPStage(BlockSequence):
    """Blocks, then 2x2 patch merging to `out_dim` channels (none if `out_dim` is None), on [B, C, H, W]."""

    def __init__(
        self,
        dim: int,
        out_dim: int | None,
        num_positions: int,
        mlp_ratio: float,
        drop_path_rates: Sequence[float],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            PureMLPBlock(dim, num_positions, mlp_ratio, rate) for rate in drop_path_rates
        )
        # A convolution of stride and size 2 is the linear layer over each 2x2 patch.
        self.merge = nn.Identity() if out_dim is None else nn.Conv2d(dim, out_dim, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.run(list(self.blocks), x))


class PureMLP(HierarchicalBackbone):
    """[B, in_chans, H, W] of exactly `img_size` → [B, num_classes]; feature maps at strides P, 2 P, 4 P, ...

    Args:
        img_size: height and width of the images, a multiple of the last stride.
        patch_size: P, the stride of the first stage.
        dims, blocks, mlp_ratios: channels, blocks and width of the channel MLPs per stage, as in ConvMLP.
        drop_path_rate: highest stochastic depth rate, in [0, 1), from 0 in each stage, as in ConvMLP.

    Raises:
        ValueError: an argument is out of its range or the per-stage sequences differ in length.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 8,
        dims: Sequence[int] = (128, 256, 512),
        blocks: Sequence[int] = (2, 4, 2),
        mlp_ratios: Sequence[float] = (2, 2, 2),
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_stages(dims=dims, blocks=blocks, mlp_ratios=mlp_ratios)
        strides = [patch_size * 2**i for i in range(len(dims))]
        check_patches(img_size, strides[-1])
        self.num_classes, self.num_features, self.in_chans = num_classes, dims[-1], in_chans
        self.fixed_image_size: tuple[int, int] = height_width(img_size)
        self.min_image_size = min(self.fixed_image_size)
        height, width = self.fixed_image_size

        self.patch_embed = nn.Conv2d(in_chans, dims[0], patch_size, patch_size)
        self.stages = nn.ModuleList(
            PureMLPStage(
                dim,
                out_dim,
                (height // stride) * (width // stride),
                ratio,
                linear_rates(drop_path_rate, depth),
            )
            for dim, out_dim, stride, ratio, depth in zip(
                dims, [*dims[1:], None], strides, mlp_ratios, blocks, strict=True
            )
        )
        # As in ConvMLP, a stage's map is its output, after the merge; the next-to-last stage's is the last's input.
        modules = ["patch_embed", *(f"stages.{i}" for i in range(len(dims) - 2)), f"stages.{len(dims) - 1}"]
        self.feature_info = [
            {"num_chs": dim, "reduction": stride, "module": module}
            for dim, stride, module in zip(dims, strides, modules, strict=True)
        ]
        self.norm = nn.LayerNorm(dims[-1])
        self.head = self.make_head(num_classes)
        self.apply(_init_weights)

    def check_images(self, x: Tensor) -> None:
        """Raises ValueError unless the images have the size that the model was made for."""
        check_fixed_size(self, x, self.fixed_image_size)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters for layer-wise learning rates."""
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.merge", (0,)),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": [(r"^stages\.(\d+)", None)] if coarse else blocks}

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Patch embedding and stages."""
        stages = [(f"stages.{i}", stage) for i, stage in enumerate(self.stages)]
        return [("patch_embed", self.patch_embed), *stages]

    def keep_parts(self, count: int) -> None:
        """Drop the stages after the first `count` parts."""
        self.stages = self.stages[: count - 1]

    def init_head(self, head: nn.Linear) -> None:
        """Fill a fresh head as ConvMLP's."""
        _init_weights(head)


def _init_weights(module: nn.Module) -> None:
    """ConvMLP's for linear layers, of which the patch projections are two."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
