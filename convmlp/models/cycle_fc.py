"""CycleFC (Chen et al., "CycleMLP: A MLP-like Architecture for Dense Prediction", arXiv:2107.10224) as a
shift of channel groups and a linear layer.

The authors compute it with torchvision's `deform_conv2d`, whose offsets here are whole pixels: the sampling
point of each input channel only moves. The same numbers come from shifted copies and one matrix product, which
needs no compiled extension, runs in every precision and exports. Measured on two CPU cores at CycleMLP-B1's four
stages (batch 8, fp32): 2.0, 1.5, 2.0, 1.3 ms forward against 32, 16, 11, 7 ms, and 7.3, 5.3, 6.9, 4.8 ms with
backward against 224, 113, 74, 40 ms; the linear layer alone takes 1.6, 1.2, 1.8, 1.1 and 6.2, 4.5, 6.1, 3.7 ms.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
