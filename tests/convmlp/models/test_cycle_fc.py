"""CycleFC equals the deformable convolution that the authors compute it with, forward and backward, everywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import deform_conv2d

from convmlp.models.cycle_mlp import CycleFC, cycle_shifts, read_shifts, shift_channels

KERNELS = [(1, 3), (3, 1), (1, 7), (5, 1)]


def cycle_fc(in_channels: int, out_channels: int, kernel_size: tuple[int, int]) -> CycleFC:
    layer = CycleFC(in_channels, out_channels, kernel_size).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def deformable(layer: CycleFC, x: Tensor) -> Tensor:
    """[B, H, W, C] through torchvision's operator, with the layer's own weights and offsets."""
    batch, height, width, _ = x.shape
    offsets = layer.offset.expand(batch, -1, height, width).contiguous()
    return deform_conv2d(x.permute(0, 3, 1, 2).contiguous(), offsets, layer.weight, layer.bias).permute(
        0, 2, 3, 1
    )


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 11), st.sampled_from(KERNELS))
def test_equals_deformable_convolution(
    batch: int, height: int, width: int, channels: int, kernel: tuple[int, int]
) -> None:
    layer = cycle_fc(channels, 5, kernel)
    ours = torch.randn(batch, height, width, channels, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    outputs = layer(ours), deformable(layer, theirs)
    torch.testing.assert_close(*outputs)
    towards = torch.randn_like(outputs[0])
    parameters = [layer.weight, layer.bias]
    gradients = [
        torch.autograd.grad((output * towards).sum(), [x, *parameters])
        for output, x in zip(outputs, (ours, theirs), strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_offsets_are_the_authors() -> None:
    assert CycleFC(5, 1, (1, 3)).offset.flatten().tolist() == [0, 0, 0, 1, 0, -1, 0, 0, 0, 1]
    assert CycleFC(4, 1, (3, 1)).offset.flatten().tolist() == [0, 0, 1, 0, -1, 0, 0, 0]
    assert cycle_shifts((1, 7)) == ((0, 0), (0, 1), (0, 2), (0, 3), (0, -3), (0, -2), (0, -1))
    with pytest.raises(ValueError, match="kernel_size"):
        CycleFC(4, 4, (3, 3))


def test_the_offsets_of_a_checkpoint_decide() -> None:
    """The paper's phase, and even a pattern without a cycle, load from the `offset` entry."""
    layer = cycle_fc(7, 5, (1, 3))
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    for pattern in ([0, -1, 0, 0, 0, 1] * 2 + [0, -1], [0, 2, -1, 0, 3, 3, 0, 0, 0, 1, 1, -1, 0, 0]):
        state = layer.state_dict() | {"offset": torch.tensor(pattern).reshape(1, 14, 1, 1)}
        layer.load_state_dict(state)
        torch.testing.assert_close(layer(x), deformable(layer, x))
    with pytest.raises(ValueError, match="whole pixels"):
        layer.load_state_dict(layer.state_dict() | {"offset": torch.full((1, 14, 1, 1), 0.5)})


def test_the_shortest_cycle_is_found() -> None:
    for kernel in KERNELS:
        assert read_shifts(CycleFC(20, 2, kernel).offset) == cycle_shifts(kernel)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(KERNELS))
@settings(max_examples=20)
def test_a_shift_and_its_opposite_are_adjoint(height: int, width: int, kernel: tuple[int, int]) -> None:
    shifts = cycle_shifts(kernel)
    opposite = tuple((-dy, -dx) for dy, dx in shifts)
    x, y = torch.randn(2, 2, height, width, 8, dtype=torch.float64)
    left = (shift_channels(x, shifts) * y).sum()
    torch.testing.assert_close(left, (x * shift_channels(y, opposite)).sum())


def test_second_derivatives_and_low_precision() -> None:
    layer = cycle_fc(3, 2, (1, 3))
    x = torch.randn(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
    exact = shift_channels(x.bfloat16(), layer.shifts)  # copies: nothing is rounded
    assert torch.equal(exact, shift_channels(x.bfloat16().double(), layer.shifts).bfloat16())
