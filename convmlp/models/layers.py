"""Layers that several networks share: stochastic depth, the two-layer MLP, which feature maps a caller asks for.

They behave as timm's of the same names, draw for draw and bit for bit. But timm's package imports every network it
has, torchvision and with them torch's compiler: 4 of the 9 CPU seconds that a check of a job took.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training the whole of a sample is zero with probability `drop_prob`, the
    others are divided by 1 - `drop_prob`. Any shape [B, ...]."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep = 1 - self.drop_prob
        per_sample = [x.shape[0], *(1 for _ in x.shape[1:])]
        return x * x.new_empty(per_sample).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Returns the description that `print` shows."""
        return f"drop_prob={self.drop_prob:.3f}"


class Mlp(nn.Module):
    """Linear, GELU, linear over the last dimension: [..., dim] → [..., out] (`out`: dim unless given)."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def height_width(size: Any) -> tuple[int, int]:
    """(height, width) of an int, which is both, or of a pair."""
    if isinstance(size, Iterable):
        height, width = size
        return height, width
    return size, size


def take_indices(count: int, indices: int | list[int] | None) -> tuple[list[int], int]:
    """The feature maps of `count` that `indices` means by timm's convention, and the largest of them: None is all, an
    int the last so many, negative entries of a list count from the end.

    Raises:
        ValueError: there is no such map.
    """
    if indices is None or isinstance(indices, int):
        last = count if indices is None else indices
        if not 0 < last <= count:
            raise ValueError(f"the last {last} of {count} feature maps: choose 1 to {count}")
        taken = list(range(count - last, count))
    else:
        taken = [index + count if index < 0 else index for index in indices]
        if not taken or not all(0 <= index < count for index in taken):
            raise ValueError(f"feature maps {list(indices)}: there are 0 to {count - 1}")
    return taken, max(taken)
