"""Instance masks as bits: eight pixels a byte, on their way from readers to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pack_masks(masks: NDArray[Any]) -> NDArray[np.uint8]:
    """[n, H, W], 0 and 1 → [n, H, ceil(W / 8)] uint8, the left pixel in the highest bit."""
    return np.packbits(masks, axis=-1)


def unpack_masks(packed: Tensor, width: int) -> Tensor:
    """The masks [n, H, width] uint8, 0 and 1, on whatever device the bits are."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    bits = (packed[..., None] >> shifts) & 1
    return bits.flatten(-2)[..., :width]
