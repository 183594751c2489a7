"""Pixels in another order: laws of the orders, and what the Mixer paper says of them, to the last digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from convmlp import create_model
from convmlp.transforms.image_transforms import EvalTransform, TrainTransform
from convmlp.transforms.pixel_order import (
    Kind,
    Order,
    PermutedEvalTransform,
    PermutedTrainTransform,
    instead_of,
    permute_pixels,
    pixel_order,
)

HALF = (0.5, 0.5, 0.5)
sizes = st.integers(1, 5)
kinds = st.sampled_from(["patches", "pixels"])
seeds = st.integers(0, 2**31)


@given(kinds, sizes, sizes, sizes, seeds)
def test_an_order_is_a_permutation_and_a_function_of_its_arguments(
    kind: Kind, down: int, across: int, patch: int, seed: int
) -> None:
    size = down * patch, across * patch
    order = pixel_order(kind, *size, patch_size=patch, seed=seed)
    assert np.array_equal(np.sort(order), np.arange(size[0] * size[1]))
    assert np.array_equal(order, pixel_order(kind, *size, patch_size=patch, seed=seed))


@given(sizes, sizes, sizes, seeds)
def test_patches_stay_patches_and_share_one_order_of_pixels(
    down: int, across: int, patch: int, seed: int
) -> None:
    order = pixel_order("patches", down * patch, across * patch, patch_size=patch, seed=seed)
    rows, columns = np.divmod(order, across * patch)
    source = _patches(rows // patch * across + columns // patch, down, across, patch)
    within = _patches(rows % patch * patch + columns % patch, down, across, patch)
    assert (source == source[:, :1]).all(), "every patch comes out of one patch"
    assert np.array_equal(np.sort(source[:, 0]), np.arange(down * across))
    assert (within == within[:1]).all(), "in the same order"


def _patches(values: Order, down: int, across: int, patch: int) -> Order:
    """Of a flat image: shape (patches, pixels of a patch)."""
    image = values.reshape(down, patch, across, patch)
    return image.transpose(0, 2, 1, 3).reshape(down * across, patch * patch)


@given(kinds, seeds)
def test_all_images_and_channels_are_permuted_alike(kind: Kind, seed: int) -> None:
    order = pixel_order(kind, 4, 6, patch_size=2, seed=seed)
    images = torch.arange(2 * 3 * 24).view(2, 3, 4, 6)
    moved = permute_pixels(images, order)
    for image in range(2):
        for channel in range(3):
            expected = images[image, channel].flatten()[torch.from_numpy(order)]
            assert torch.equal(moved[image, channel].flatten(), expected)


@given(kinds, kinds, seeds, seeds)
def test_an_order_can_take_the_place_of_one_that_was_applied(
    first: Kind, second: Kind, seed: int, other: int
) -> None:
    images = torch.arange(16).view(1, 4, 4)
    applied, order = (
        pixel_order(kind, 4, 4, patch_size=2, seed=s) for kind, s in ((first, seed), (second, other))
    )
    came = permute_pixels(images, applied)
    assert torch.equal(permute_pixels(came, instead_of(order, applied)), permute_pixels(images, order))
    assert instead_of(order, None) is order


def test_the_orders_never_change() -> None:
    """Runs and evaluations of years must mean the same pixels."""
    assert pixel_order("pixels", 2, 4, seed=0).tolist() == [6, 2, 1, 7, 3, 0, 5, 4]
    patches = [13, 12, 15, 14, 8, 9, 10, 11, 7, 6, 5, 4, 2, 3, 0, 1]
    assert pixel_order("patches", 4, 4, patch_size=2, seed=0).tolist() == patches


def test_images_of_parts_of_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="not made of whole patches of 16x16"):
        pixel_order("patches", 32, 40, patch_size=16)


@pytest.mark.parametrize("kind", ["patches", "pixels"])
def test_transforms_permute_what_they_would_have_made(kind: Kind) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    order = pixel_order(kind, 16, 16, patch_size=4, seed=3)
    plain = EvalTransform(16, mean=HALF, std=HALF)
    moved = PermutedEvalTransform(plain, order)
    assert torch.equal(moved(image), permute_pixels(plain(image), order))
    out, expected = np.empty((2, 16, 16, 3), np.uint8)
    moved.render(image, out)
    plain.render(image, expected)
    assert np.array_equal(out.reshape(-1, 3), expected.reshape(-1, 3)[order])
    for erasing in (0.0, 1.0):
        train = TrainTransform(16, mean=HALF, std=HALF, random_erasing=erasing)
        permuted = PermutedTrainTransform(train, order)
        assert permuted.dtype == train.dtype
        permuted.seed(7)
        one = permuted(image)
        train.seed(7)
        assert torch.equal(one, permute_pixels(train(image), order)), "the draws are the same"


def test_a_mixer_absorbs_shuffled_patches() -> None:
    """Re-indexing stem and token mixing makes a Mixer that sees the shuffled image as the first saw the original."""
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 4, "num_blocks": 3, "embed_dim": 24}
    mixer = create_model("mixer_s16", 7, **options).double().eval()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    order = pixel_order("patches", 16, 16, patch_size=4, seed=11)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    absorbed = create_model("mixer_s16", 7, **options).double().eval()
    absorbed.load_state_dict(_reindexed(mixer.state_dict(), order))
    with torch.no_grad():
        seen, shuffled = mixer(images), absorbed(permute_pixels(images, order))
        untouched = mixer(permute_pixels(images, order))
    assert (seen - shuffled).abs().max() <= 1e-12 * seen.abs().max()
    assert (seen - untouched).abs().max() > 0.1 * seen.abs().max(), "a trained one is not robust"


def _reindexed(state: dict[str, Tensor], order: Order) -> dict[str, Tensor]:
    """Weights of a Mixer on 16 x 16 px, patches of 4 x 4, for images in this order."""
    rows, columns = np.divmod(order.reshape(16, 16), 16)
    patches = torch.from_numpy((rows // 4 * 4 + columns // 4)[::4, ::4].reshape(-1).copy())
    within = torch.from_numpy((rows % 4 * 4 + columns % 4)[:4, :4].reshape(-1).copy())
    moved = {}
    for name, value in state.items():
        if name == "stem.proj.weight":
            value = permute_pixels(value, within.numpy())
        elif ".mlp_tokens.fc1.weight" in name:
            value = value[:, patches]
        elif ".mlp_tokens.fc2." in name:
            value = value[patches]
        moved[name] = value
    return moved
