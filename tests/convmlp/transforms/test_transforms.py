"""Image transforms: shapes, the published recipe, and randomness from the three global generators only."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import v2

from convmlp.transforms.image_transforms import eval_transform, train_transform
from convmlp.transforms.pixels import Box, Normalize, random_resized_box, resize_into

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


def smooth(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A picture without sharp edges, uint8 (height, width, 3)."""
    return np.asarray(picture(8, 6).resize((width, height), Image.Resampling.BICUBIC))


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
@pytest.mark.parametrize("recipe", [{}, PAPER], ids=["crop", "paper"])
def test_the_imagenet_recipe_is_timms(recipe: dict[str, Any], key: int) -> None:
    """Draw for draw, but for the flip, which timm takes from torch. Resizing differs by a rounding, which a few
    of RandAugment's operations (equalize, solarize) make larger for some pixels."""
    ours = train_transform(64, mean=MEAN, std=STD, hflip=0.0, **recipe)
    timms = create_transform(
        64,
        is_training=True,
        hflip=0.0,
        color_jitter=0.0,
        auto_augment=recipe.get("rand_augment"),
        re_prob=recipe.get("random_erasing", 0.0),
        re_mode="pixel",
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    )
    seed(key)
    expected = timms(picture(300, 240))
    seed(key)
    levels = 255 * min(STD) * (ours(picture(300, 240)) - expected).abs()
    assert levels.mean() < 1
    assert (levels > 3).float().mean() < (0.03 if recipe else 0.001)


@settings(max_examples=100)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 2**32))
def test_the_random_resized_box_is_timms(height: int, width: int, key: int) -> None:
    image = Image.new("L", (width, height))
    random.seed(key)
    top, left, tall, wide = RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
    random.seed(key)
    box = random_resized_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3))
    assume(tall > 0 and wide > 0)  # timm can draw an empty box of a line of pixels
    assert box == (top, left, tall, wide)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 240), (70, 50), (64, 200)])
def test_resizing_is_pillows(interpolation: str, size: tuple[int, int]) -> None:
    image = Image.fromarray(smooth(*size))
    box = Box(3, 5, size[1] - 7, size[0] - 9)
    out = np.empty((64, 64, 3), np.uint8)
    resize_into(out, box.cut(np.asarray(image), size[::-1]), interpolation)
    cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    expected = np.asarray(cut.resize((64, 64), Image.Resampling[interpolation.upper()]), np.int16)
    assert np.abs(out - expected).max() <= 1


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 8]))
def test_a_smaller_decoded_image_shows_the_same_view(key: int, factor: int) -> None:
    """What libjpeg-turbo's scaled decoding gives the transform: enough pixels, and the scene moved by no more than
    half of an output pixel (a box of whole pixels)."""
    transform = train_transform(32, mean=MEAN, std=STD, hflip=0.5)
    whole = smooth(512, 384)
    seed(key)
    view = transform.view(384, 512)
    height, width = view.smallest(32)
    assume(height <= 384 // factor and width <= 512 // factor)
    assert view.box.scaled((384 // factor, 512 // factor), view.stored).height >= 31
    small = np.asarray(Image.fromarray(whole).resize((512 // factor, 384 // factor), Image.Resampling.BOX))
    out, expected = np.empty((2, 32, 32, 3), np.uint8)
    transform.render(view.box.cut(small, view.stored), view, out)
    transform.render(view.box.cut(whole, view.stored), view, expected)
    assert np.abs(out.astype(int) - expected).mean() < 10


def test_pixels_are_normalised_alike_before_and_after_they_are_batched() -> None:
    transform = train_transform(32, mean=MEAN, std=STD)
    seed(1)
    expected = transform(picture())
    seed(1)
    out = np.empty((1, 32, 32, 3), np.uint8)
    view = transform.view(45, 61)
    transform.render(view.box.cut(np.asarray(picture()), view.stored), view, out[0])
    batch = Normalize(MEAN, STD)(torch.from_numpy(out).permute(0, 3, 1, 2))
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(batch[0], expected)


def test_only_the_generators_that_are_used_are_seeded() -> None:
    plain, heavy = train_transform(32, mean=MEAN, std=STD), train_transform(32, mean=MEAN, std=STD, **PAPER)
    assert (plain.dtype, heavy.dtype) == (np.uint8, np.float32)
    torch.manual_seed(0)
    np.random.seed(0)
    plain.seed(5)
    assert torch.initial_seed() == 0
    heavy.seed(5)
    assert torch.initial_seed() == 5


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
        ({"interpolation": "nearest"}, "interpolation must be"),
        ({"crop": "pad", "pad": 32}, "pad must lie"),
        ({"rand_augment": "m9"}, "rand_augment"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(32, mean=MEAN, std=STD, **options)
