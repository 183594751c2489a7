"""CycleMLP (Chen et al., "CycleMLP: A MLP-like Architecture for Dense Prediction", arXiv:2107.10224).

Named so that `state_dict` keys equal those of the authors' checkpoints (github.com/ShoufaChen/CycleMLP).
Blocks work on [B, H, W, C].

Its operator, CycleFC, is a shift of channel groups and a linear layer here. The authors compute it with torchvision's
`deform_conv2d`, whose offsets are whole pixels: the sampling point of each input channel only moves. The same numbers
come from shifted copies and one matrix product, which needs no compiled extension, runs in every precision and exports.
Measured on two CPU cores at CycleMLP-B1's four stages (batch 8, fp32): 2.0, 1.5, 2.0, 1.3 ms forward against 32, 16,
11, 7 ms, and 7.3, 5.3, 6.9, 4.8 ms with backward against 224, 113, 74, 40 ms; the linear layer alone takes 1.6, 1.2,
1.8, 1.1 and 6.2, 4.5, 6.1, 3.7 ms.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmlp.models.backbone import (
    BlockSequence,
    HierarchicalBackbone,
    channel_norm,
    check_stages,
    linear_rates,
)
from convmlp.models.layers import DropPath, Mlp

Shifts = tuple[tuple[int, int], ...]
"""(dy, dx) in pixels: channel i reads its input at (y + dy, x + dx) of entry i mod the tuple's length."""


class CycleFC(nn.Module):
    """[B, H, W, in_channels] → [B, H, W, out_channels]: out[y, x] = bias + Σᵢ weight[:, i] in[y + dyᵢ, x + dxᵢ, i].

    Outside the image the input is zero. The state_dict is the authors': weight [out, in, 1, 1], bias [out] and
    the buffer offset [1, 2 in, 1, 1] with (dyᵢ, dxᵢ) at (2i, 2i + 1), which decides: loading one that differs
    from `kernel_size`'s changes the layer.

    Args:
        kernel_size: (height, width) of the window that the sampling points cycle through; one of them is 1.
    """

    offset: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int]) -> None:
        super().__init__()
        if min(kernel_size) != 1:
            raise ValueError(f"kernel_size must be (1, n) or (n, 1), not {kernel_size}")
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.shifts = cycle_shifts(kernel_size)
        per_channel = [self.shifts[i % len(self.shifts)] for i in range(in_channels)]
        self.register_buffer("offset", torch.tensor(per_channel, dtype=torch.float32).reshape(1, -1, 1, 1))
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(shift_channels(x, self.shifts), self.weight.flatten(1), self.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.offset.is_meta:
            self.shifts = read_shifts(self.offset)

    def extra_repr(self) -> str:
        """Returns the description that `print` shows."""
        out_channels, in_channels = self.weight.shape[:2]
        return f"{in_channels}, {out_channels}, shifts={self.shifts}"


def cycle_shifts(kernel_size: tuple[int, int]) -> Shifts:
    """The authors' offsets along the longer side: (i + n // 2) mod n - n // 2, so 0, +1, -1 for three."""
    n = max(kernel_size)
    along = [(i + n // 2) % n - n // 2 for i in range(n)]
    return tuple((0, d) if kernel_size[0] == 1 else (d, 0) for d in along)


def read_shifts(offset: Tensor) -> Shifts:
    """The shortest cycle of whole-pixel shifts that an `offset` buffer [1, 2C, 1, 1] holds.

    Raises:
        ValueError: an offset isn't a whole number of pixels.
    """
    values = offset.detach().flatten().tolist()
    if not all(float(value).is_integer() for value in values):
        raise ValueError(
            "CycleFC offsets must be whole pixels; this file's are not (learned deformable convolution?)"
        )
    pairs = [(int(dy), int(dx)) for dy, dx in zip(values[::2], values[1::2], strict=True)]
    period = next(n for n in range(1, len(pairs) + 1) if all(p == pairs[i % n] for i, p in enumerate(pairs)))
    return tuple(pairs[:period])


def shift_channels(x: Tensor, shifts: Shifts) -> Tensor:
    """[B, H, W, C] → the same shape: y[b, h, w, i] = x[b, h + dyᵢ, w + dxᵢ, i], zero outside."""
    return _shift_by_padding(x, shifts) if torch.compiler.is_exporting() else _ShiftChannels.apply(x, shifts)


class _ShiftChannels(torch.autograd.Function):
    """Slice copies. The gradient of a shift is the opposite shift: one pass, where autograd's own derivative
    of the copies takes one per group."""

    @staticmethod
    def forward(x: Tensor, shifts: Shifts) -> Tensor:
        y = torch.zeros_like(x, memory_format=torch.contiguous_format)
        for group, (dy, dx) in enumerate(shifts):
            channels = slice(group, None, len(shifts))
            y[:, _target(dy), _target(dx), channels] = x[:, _source(dy), _source(dx), channels]
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Shifts], output: Tensor) -> None:
        ctx.shifts = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return shift_channels(gradients[0], tuple((-dy, -dx) for dy, dx in ctx.shifts)), None


def _shift_by_padding(x: Tensor, shifts: Shifts) -> Tensor:
    """The same by cropping one side and padding the other: a second copy, but sizes that a dynamic shape
    keeps. Slices of H - 1 rows would tie an exported program to images of more than two last-stage rows."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for group, (dy, dx) in enumerate(shifts):
        channels = slice(group, None, len(shifts))
        y[..., channels] = F.pad(x[..., channels], (0, 0, -dx, dx, -dy, dy))
    return y


def _source(distance: int) -> slice:
    return slice(distance, None) if distance > 0 else slice(None, distance or None)


def _target(distance: int) -> slice:
    return slice(None, -distance) if distance > 0 else slice(-distance, None)


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
