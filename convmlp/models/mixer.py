"""MLP-Mixer (Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", arXiv:2105.01601).

timm's network, so that its state_dict and weights fit, with the paper's training: stochastic depth that rises
linearly over the blocks, Flax's initialisation, and the choice of GELU that Google's released weights need.
"""

from functools import partial
from typing import Literal

from timm.layers import lecun_normal_
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from convmlp.models.backbone import check_fixed_size, check_patches, linear_rates
from convmlp.models.layers import DropPath, height_width

Gelu = Literal["exact", "tanh"]


class Mixer(MlpMixer):
    """[B, in_chans, H, W] of exactly `img_size` → [B, num_classes]. No pyramid: all feature maps have stride P.

    Args:
        img_size: height and width of the images, a multiple of `patch_size`: the token-mixing weights have one
            row per patch.
        patch_size: P.
        num_blocks, embed_dim: depth and width C; token mixing is C / 2 wide, channel mixing 4 C.
        drop_path_rate: highest stochastic depth rate, in [0, 1).
        gelu: "exact" as in timm, or "tanh", the approximation with which Google trained its `.npz` weights.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        *,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        num_blocks: int = 12,
        embed_dim: int = 768,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        gelu: Gelu = "exact",
    ) -> None:
        rates = linear_rates(drop_path_rate, num_blocks)
        check_patches(img_size, patch_size)
        if gelu not in ("exact", "tanh"):
            raise ValueError(f"gelu must be 'exact' or 'tanh', not {gelu!r}")
        super().__init__(
            num_classes=num_classes,
            img_size=img_size,
            in_chans=in_chans,
            patch_size=patch_size,
            num_blocks=num_blocks,
            embed_dim=embed_dim,
            act_layer=nn.GELU if gelu == "exact" else partial(nn.GELU, approximate="tanh"),
            drop_rate=drop_rate,
        )
        self.gelu = gelu
        self.fixed_image_size: tuple[int, int] = height_width(img_size)
        for block, rate in zip(self.blocks, rates, strict=True):
            block.drop_path = DropPath(rate) if rate > 0 else nn.Identity()

    def init_weights(self, nlhb: bool = False) -> None:
        """Flax's defaults, as in the released code: LeCun-normal weights, zero biases, a head of zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by one of zeros; 0 classes removes it.

        Raises:
            ValueError: `global_pool` is neither "avg" nor "" (no pooling).
        """
        if global_pool not in (None, "", "avg"):
            raise ValueError(f"Mixer pools by the mean: global_pool must be 'avg' or '', not {global_pool!r}")
        super().reset_classifier(num_classes, global_pool)
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] → normalised tokens [B, H W / P², embed_dim]."""
        check_fixed_size(self, x, self.fixed_image_size)
        return super().forward_features(x)

    def forward_intermediates(self, x: Tensor, *args: object, **kwargs: object) -> object:
        """timm's: maps [B, embed_dim, H / P, W / P] after the blocks that `indices` selects."""
        check_fixed_size(self, x, self.fixed_image_size)
        return super().forward_intermediates(x, *args, **kwargs)

    def no_weight_decay(self) -> set[str]:
        """Parameters excluded from decay beyond timm's rule (1-D tensors and biases): none."""
        return set()
