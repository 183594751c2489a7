"""Image transforms: shapes, the published recipe, and randomness from the three global generators only."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from convmlp.transforms import eval_transform, train_transform

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
PAPER = {"rand_augment": RAND_AUGMENT, "random_erasing": 0.25}
RECIPES: list[dict[str, Any]] = [
    {"image_size": 48, **PAPER},
    {"image_size": 48, "interpolation": "random", "color_jitter": 0.4},
    {"image_size": 32, "crop": "pad"},
    {"image_size": 32, "crop": "pad", "interpolation": "random", **PAPER},
    {"image_size": 32, "crop": "none", "hflip": 1.0, "color_jitter": 0.4, "random_erasing": 1.0},
]


def picture(width: int = 61, height: int = 45, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_any_image_becomes_a_float_square(recipe: dict[str, Any], mode: str) -> None:
    image = picture(mode=mode)
    size = recipe["image_size"]
    for transform in (
        train_transform(**recipe, mean=MEAN, std=STD),
        eval_transform(size, mean=MEAN, std=STD),
    ):
        tensor = transform(image)
        assert tensor.shape == (3, size, size)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()


@pytest.mark.parametrize("recipe", RECIPES)
def test_seeding_the_three_generators_keys_the_augmentation(recipe: dict[str, Any]) -> None:
    first, second = (train_transform(**recipe, mean=MEAN, std=STD) for _ in range(2))
    image = picture()
    seen = []
    for key in range(12):
        seed(key)
        once = first(image)
        second(image)  # another instance, after other draws
        seed(key)
        torch.testing.assert_close(second(image), once, rtol=0, atol=0)
        seen.append(once)
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


@pytest.mark.parametrize("key", range(8))
def test_the_imagenet_recipe_is_timms(key: int) -> None:
    ours = train_transform(64, mean=MEAN, std=STD, **PAPER)
    timms = create_transform(
        64,
        is_training=True,
        auto_augment=RAND_AUGMENT,
        re_prob=0.25,
        re_mode="pixel",
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    )
    seed(key)
    expected = timms(picture())
    seed(key)
    torch.testing.assert_close(ours(picture()), expected, rtol=1e-5, atol=1e-5)


def test_the_highest_posterize_magnitude_does_not_fail() -> None:
    transform = train_transform(32, mean=MEAN, std=STD, rand_augment="rand-m10-n8-inc1", crop="none")
    for key in range(60):
        seed(key)
        assert torch.isfinite(transform(picture())).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 8))
def test_pad_crop_is_a_window_of_the_reflected_image(key: int, pad: int) -> None:
    image = picture(16, 16)
    seed(key)
    ours = train_transform(16, mean=(0, 0, 0), std=(1, 1, 1), crop="pad", pad=pad)(image)
    whole = v2.functional.pad(
        v2.functional.to_dtype(v2.functional.pil_to_tensor(image), scale=True),
        [pad] * 4,
        padding_mode="reflect",
    )
    windows = [
        whole[:, top : top + 16, left : left + 16]
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    ]
    assert any(
        torch.allclose(ours, w, atol=1e-6) or torch.allclose(ours, w.flip(-1), atol=1e-6) for w in windows
    )


def test_a_whole_image_is_only_normalised() -> None:
    image = picture(32, 32)
    transform = train_transform(32, mean=MEAN, std=STD, crop="none", hflip=0.0)
    expected = v2.functional.normalize(
        v2.functional.to_dtype(v2.functional.pil_to_tensor(image), scale=True), list(MEAN), list(STD)
    )
    torch.testing.assert_close(transform(image), expected)
    torch.testing.assert_close(eval_transform(32, mean=MEAN, std=STD, crop_pct=1.0)(image), expected)


def test_flip_probability_is_kept() -> None:
    image = picture(8, 8)
    transform = train_transform(8, mean=MEAN, std=STD, crop="pad", pad=0, hflip=0.3)
    plain = train_transform(8, mean=MEAN, std=STD, crop="none", hflip=0.0)(image)
    seed(0)
    flipped = sum(not torch.equal(transform(image), plain) for _ in range(1000))
    assert 250 < flipped < 350


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "center"}, "crop must be"),
        ({"crop": "pad", "pad": 32}, "pad must lie"),
        ({"rand_augment": "m9"}, "rand_augment"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(32, mean=MEAN, std=STD, **options)
