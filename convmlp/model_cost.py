"""The cost of a network: parameters, and multiply-accumulates by the papers' definition."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module, trainable_only: bool = False) -> int:
    """Numbers in the module's parameters, each shared one once; buffers such as BatchNorm's aren't counted."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def count_macs(
    model: nn.Module, image_size: int | tuple[int, int] = 224, in_chans: int = 3, batch_size: int = 1
) -> int:
    """Multiply-accumulates of one image's way through `model`: convolutions and matrix products.

    This is what the papers call "MACs" (ConvMLP) and "FLOPs" (CycleMLP, Mixer): a multiplication and the
    addition after it are one, and a CycleFC is the 1x1 convolution it amounts to. The published figures come
    from fvcore, which adds a pseudo-cost for norms: 0.1 to 0.6 % more than this. Nothing is computed and no
    memory taken: the count runs on the meta device, in evaluation mode; the model stays as it is.

    Args:
        image_size: pixels, one side or (height, width).
        batch_size: images at a time; the result is per image.

    Raises:
        ValueError: the model doesn't take such images.
    """
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    on_meta = {name: _to_meta(t) for name, t in chain(model.named_parameters(), model.named_buffers())}
    images = torch.empty(batch_size, in_chans, height, width, device="meta")
    # Without fused attention its two matrix products are seen as what they are.
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        torch.func.functional_call(model, on_meta, (images,))
    return counter.get_total_flops() // (2 * batch_size)


def _to_meta(tensor: Tensor) -> Tensor:
    # The images are float32: weights of another floating type have to match them.
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, device="meta", dtype=dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode; afterwards each module is in the mode it was in."""
    was_training: dict[Any, bool] = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training.items():
            module.training = training
