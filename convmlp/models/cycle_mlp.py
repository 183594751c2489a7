"""CycleMLP (Chen et al., "CycleMLP: A MLP-like Architecture for Dense Prediction", arXiv:2107.10224).

Named so that `state_dict` keys equal those of the authors' checkpoints (github.com/ShoufaChen/CycleMLP).
Blocks work on [B, H, W, C].
"""

from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from convmlp.models.backbone import (
    BlockSequence,
    HierarchicalBackbone,
    channel_norm,
    check_stages,
    linear_rates,
)
from convmlp.models.cycle_fc import CycleFC

PATCH_STRIDE = 4


class CycleMixer(nn.Module):
    """Three branches (CycleFC along width, along height, channels only), summed with learned weights.

    The weights come from the mean of the branches' sum over all positions, as a softmax over the branches for
    each channel. By the authors' names `sfc_h` cycles along the width and `sfc_w` along the height.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp_c = nn.Linear(dim, dim, bias=False)
        self.sfc_h = CycleFC(dim, dim, (1, 3))
        self.sfc_w = CycleFC(dim, dim, (3, 1))
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        along_width, along_height, channels = self.sfc_h(x), self.sfc_w(x), self.mlp_c(x)
        weights = self.reweight((along_width + along_height + channels).mean(dim=(1, 2)))
        weights = weights.unflatten(1, (-1, 3)).softmax(dim=2)[:, None, None]  # [B, 1, 1, C, 3]
        mixed = along_width * weights[..., 0] + along_height * weights[..., 1] + channels * weights[..., 2]
        return self.proj(mixed)


class CycleBlock(nn.Module):
    """CycleFC mixing and a channel MLP, both residual after a LayerNorm, on [B, H, W, dim]."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = CycleMixer(dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CycleStage(BlockSequence):
    """Blocks under the names "0", "1", ... on [B, C, H, W]."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path_rates: Sequence[float]) -> None:
        super().__init__()
        for i, rate in enumerate(drop_path_rates):
            self.add_module(str(i), CycleBlock(dim, mlp_ratio, rate))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(list(self.children()), x)


class _Projection(nn.Module):
    """A convolution under the authors' two-level name: patch embedding and downsampling."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class CycleMLP(HierarchicalBackbone):
    """7x7 patch embedding of stride 4, stages of cycle blocks with 3x3 stride-2 convolutions between them.

    [B, in_chans, H, W] → [B, num_classes] for any H, W >= 4. Feature maps after each stage: strides 4, 8, 16, 32.

    Args:
        dims: channels per stage (two or more).
        blocks: cycle blocks per stage.
        mlp_ratios: hidden width of the channel MLPs, as a multiple of the stage's channels.
        drop_path_rate: highest stochastic depth rate, in [0, 1), rising linearly over all blocks.
        feature_norms: as the authors' dense-prediction backbone: each feature map gets a LayerNorm of its own
            (norm0, norm2, ...), and there is neither final norm nor head.

    Raises:
        ValueError: an argument is out of its range or the per-stage sequences differ in length.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        dims: Sequence[int] = (64, 128, 320, 512),
        blocks: Sequence[int] = (2, 2, 4, 2),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        drop_path_rate: float = 0.1,
        feature_norms: bool = False,
    ) -> None:
        super().__init__()
        check_stages(dims=dims, blocks=blocks, mlp_ratios=mlp_ratios)
        self.num_classes = 0 if feature_norms else num_classes
        self.num_features, self.in_chans = dims[-1], in_chans
        self.min_image_size = PATCH_STRIDE
        self.feature_info = [
            {"num_chs": dim, "reduction": PATCH_STRIDE * 2**i, "module": f"network.{2 * i}"}
            for i, dim in enumerate(dims)
        ]
        rates = linear_rates(drop_path_rate, sum(blocks))
        self.patch_embed = _Projection(in_chans, dims[0], kernel_size=7, stride=PATCH_STRIDE, padding=2)
        self.network = nn.ModuleList()
        for i, (dim, depth, ratio) in enumerate(zip(dims, blocks, mlp_ratios, strict=True)):
            if i > 0:
                self.network.append(_Projection(dims[i - 1], dim, kernel_size=3, stride=2, padding=1))
            start = sum(blocks[:i])
            self.network.append(CycleStage(dim, ratio, rates[start : start + depth]))
        self.norm = nn.Identity() if feature_norms else nn.LayerNorm(dims[-1])
        self.head = self.make_head(self.num_classes)
        self.optional_weights: tuple[str, ...] = ()
        """Prefixes of what a file of the classifier lacks."""
        if feature_norms:
            self.optional_weights = tuple(self._map_norm(i) for i in range(len(dims)))
            for name, dim in zip(self.optional_weights, dims, strict=True):
                self.add_module(name, nn.LayerNorm(dim))
        self.apply(_init_linear)

    def feature_map(self, index: int, x: Tensor) -> Tensor:
        """The stage's output, normalised where the model was made with `feature_norms`."""
        norm = getattr(self, self._map_norm(index), None)
        return x if norm is None else channel_norm(norm, x)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages that no feature map of `indices` needs, and the norms of the other maps."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        unused = {self._map_norm(i) for i in range(len(self.feature_info)) if i not in take}
        for name in unused & set(self.optional_weights):
            delattr(self, name)
        self.optional_weights = tuple(name for name in self.optional_weights if name not in unused)
        return take

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters for layer-wise learning rates."""
        if coarse:
            return {"stem": r"^patch_embed", "blocks": r"^network\.(\d+)"}
        blocks = [(r"^network\.(\d+)\.(\d+)", None), (r"^network\.(\d+)\.proj", (0,)), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": blocks}

    def parts(self) -> list[tuple[str, nn.Module]]:
        """Patch embedding, stages and the convolutions between them."""
        network = [(f"network.{i}", part) for i, part in enumerate(self.network)]
        return [("patch_embed", self.patch_embed), *network]

    def keep_parts(self, count: int) -> None:
        """Drop the parts after the first `count`."""
        self.network = self.network[: count - 1]

    def init_head(self, head: nn.Linear) -> None:
        """Fill a fresh head as the authors do."""
        _init_linear(head)

    @staticmethod
    def _map_norm(index: int) -> str:
        return f"norm{2 * index}"


def _init_linear(module: nn.Module) -> None:
    """The authors' initialisation; CycleFC fills itself, convolutions keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
