"""From a PIL image to a normalised float32 tensor [3, H, W], for training and for evaluation.

Every random draw comes from Python's `random`, numpy's legacy global generator or torch's default CPU
generator: seed these three per sample, and the augmentation is a function of that seed.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment, posterize, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import ColorJitter, Compose, RandomHorizontalFlip

Crop = Literal["random_resized", "pad", "none"]
ImageTransform = Callable[[Image.Image], Tensor]


def train_transform(
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
    hflip: float = 0.5,
    color_jitter: float = 0.0,
    rand_augment: str | None = None,
    random_erasing: float = 0.0,
    crop: Crop = "random_resized",
    pad: int = 4,
) -> ImageTransform:
    """Crop, flip, RandAugment or colour jitter, normalise, erase: in timm's order and with timm's meaning.

    Args:
        image_size: side of the square output, in pixels.
        mean, std: per channel, of pixels in [0, 1].
        scale, ratio: area and aspect ratio of the random resized crop; other crops ignore them.
        interpolation: "bicubic", "bilinear", "nearest" or "random" (bilinear or bicubic).
        hflip: probability of a horizontal flip.
        color_jitter: strength for brightness, contrast and saturation; as in timm, RandAugment displaces it.
        rand_augment: timm's specification, e.g. "rand-m9-mstd0.5-inc1" (arXiv:1909.13719).
        random_erasing: probability of filling one rectangle with noise (arXiv:1708.04896).
        crop: "random_resized" (Inception's); "pad" (reflect `pad` pixels, cut at a random offset: CIFAR's);
            "none" (the whole image). The last two first resize any image that is not of `image_size` already,
            without keeping its aspect ratio.
        pad: pixels added on each side by crop="pad"; less than `image_size`.

    Raises:
        ValueError: unknown `crop` or RandAugment specification, or a `pad` out of range.
    """
    if crop not in ("random_resized", "pad", "none"):
        raise ValueError(f"crop must be random_resized, pad or none, not {crop!r}")
    if rand_augment is not None and not rand_augment.startswith("rand"):
        raise ValueError(f"rand_augment must look like 'rand-m9-mstd0.5-inc1', not {rand_augment!r}")
    steps: list[Callable[..., Image.Image | Tensor]]
    if crop == "random_resized":
        steps = [_to_rgb, RandomResizedCropAndInterpolation(image_size, scale, ratio, interpolation)]
    else:
        steps = [_ToRGBSquare(image_size, interpolation)]
    if crop == "pad":
        steps.append(_PadCropFlip(image_size, pad, hflip))
    elif hflip > 0:
        steps.append(RandomHorizontalFlip(hflip))
    if rand_augment is not None:
        steps.append(_rand_augment(rand_augment, image_size, mean, interpolation))
    elif color_jitter > 0:
        steps.append(ColorJitter(color_jitter, color_jitter, color_jitter))
    steps.append(_ToNormalisedTensor(mean, std))
    if random_erasing > 0:
        steps.append(RandomErasing(random_erasing, mode="pixel", device="cpu"))
    return Compose(steps)


def eval_transform(
    image_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop_pct: float = 0.875,
    interpolation: str = "bicubic",
) -> ImageTransform:
    """timm's recipe: resize the shorter side to floor(image_size / crop_pct), cut the centre, normalise."""
    recipe = create_transform(
        image_size,
        is_training=False,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
    )
    return Compose([_to_rgb, recipe])


def _rand_augment(spec: str, image_size: int, mean: Sequence[float], interpolation: str) -> RandAugment:
    params: dict[str, Any] = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    if interpolation != "random":
        params["interpolation"] = str_to_pil_interp(interpolation)
    augment = rand_augment_transform(spec, params)
    for op in augment.ops:
        if op.aug_fn is posterize:
            op.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """timm asks for 0 bits at the highest magnitude; Pillow 13 refuses (older ones gave black): keep one."""
    return posterize(image, max(1, bits_to_keep), **kwargs)


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


class _ToRGBSquare:
    """Any PIL image → RGB of exactly [size, size]; an image that is so already is passed on."""

    def __init__(self, size: int, interpolation: str) -> None:
        self.size = size
        self.random = interpolation == "random"
        self.filter = str_to_pil_interp("bilinear" if self.random else interpolation)

    def __call__(self, image: Image.Image) -> Image.Image:
        image = _to_rgb(image)
        if image.size == (self.size, self.size):
            return image
        choices = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
        return image.resize((self.size, self.size), random.choice(choices) if self.random else self.filter)


class _PadCropFlip:
    """Reflection padding, random crop and flip as one gather of rows and columns.

    For 32 px images this takes about 20 µs, torchvision's Pad, RandomCrop and RandomHorizontalFlip about 90.
    """

    def __init__(self, size: int, pad: int, hflip: float) -> None:
        if not 0 <= pad < size:
            raise ValueError(f"pad must lie in [0, {size}) for images of {size} px, not {pad}")
        self.size, self.pad, self.hflip = size, pad, hflip
        self.index = np.pad(np.arange(size), pad, mode="reflect")

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left = random.randint(0, 2 * self.pad), random.randint(0, 2 * self.pad)
        rows, columns = self.index[top : top + self.size], self.index[left : left + self.size]
        if random.random() < self.hflip:
            columns = columns[::-1]
        return Image.fromarray(np.asarray(image)[rows[:, None], columns])


class _ToNormalisedTensor:
    """RGB image → float32 [3, H, W], (pixel / 255 - mean) / std, as one multiply-add."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return torch.addcmul(self.shift, pixels, self.scale).contiguous()
