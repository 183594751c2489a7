"""Images for training and for evaluation: from decoded pixels into their place in a batch, or from a PIL image to a
normalised float32 tensor [3, H, W].

Every random draw comes from Python's `random`, numpy's legacy global generator or torch's default CPU
generator: `seed` keys those that a transform uses, and the augmentation is a function of that key.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convmlp.transforms.pixels import (
    INTERPOLATIONS,
    Box,
    Normalize,
    Pixels,
    flip_in_place,
    random_resized_box,
    resize_into,
)

Crop = Literal["random_resized", "pad", "none"]
_MAX_RATIO = 8


class View(NamedTuple):
    """The part of an image that is looked at, and how: all that is drawn before its pixels are decoded."""

    stored: tuple[int, int]
    """Height and width of the whole image."""
    box: Box
    interpolation: str
    offset: tuple[int, int] | None
    """Place of the crop in the padded image (`crop="pad"`)."""
    flip: bool

    def smallest(self, size: int) -> tuple[int, int]:
        """Height and width from which the whole image may be decoded smaller and its box still have `size`."""
        scale = max(size / self.box.height, size / self.box.width)
        return math.ceil(self.stored[0] * scale), math.ceil(self.stored[1] * scale)


class TrainTransform:
    """Crop, flip, RandAugment or colour jitter, erase: in timm's order and with timm's meaning.

    In three steps, so that a reader decodes only what is needed: `seed`, then `view`, then `render`.

    Args:
        image_size: side of the square output, in pixels.
        mean, std: per channel, of pixels in [0, 1].
        scale, ratio: area and aspect ratio of the random resized crop; other crops ignore them.
        interpolation: "bicubic", "bilinear" or "random" (either of them).
        hflip: probability of a horizontal flip.
        color_jitter: strength for brightness, contrast and saturation; as in timm, RandAugment displaces it.
        rand_augment: timm's specification, e.g. "rand-m9-mstd0.5-inc1" (arXiv:1909.13719).
        random_erasing: probability of filling one rectangle with noise (arXiv:1708.04896).
        crop: "random_resized" (Inception's); "pad" (reflect `pad` pixels, cut at a random offset: CIFAR's);
            "none" (the whole image). The last two first resize any image that is not of `image_size` already,
            without keeping its aspect ratio.
        pad: pixels added on each side by crop="pad"; less than `image_size`.

    Raises:
        ValueError: unknown `crop`, `interpolation` or RandAugment specification, or a `pad` out of range.
    """

    def __init__(
        self,
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
    ) -> None:
        check_augmentation(
            image_size, crop=crop, pad=pad, interpolation=interpolation, rand_augment=rand_augment
        )
        self.size, self.crop, self.pad, self.hflip = image_size, crop, pad, hflip
        self.scale, self.ratio = scale, ratio
        self.interpolations = INTERPOLATIONS if interpolation == "random" else (interpolation,)
        self.normalize = Normalize(mean, std)
        self._reflected = np.pad(np.arange(image_size), pad, mode="reflect") if crop == "pad" else None
        self._color: Callable[[Image.Image], Image.Image] | None = None
        if rand_augment is not None:
            self._color = _rand_augment(rand_augment, image_size, mean, interpolation)
        elif color_jitter > 0:
            from torchvision.transforms import ColorJitter

            self._color = ColorJitter(color_jitter, color_jitter, color_jitter)
        self._erase: Any = None
        if random_erasing > 0:
            from timm.data.random_erasing import RandomErasing

            self._erase = RandomErasing(random_erasing, mode="pixel", device="cpu")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of `render`: uint8 pixels, or normalised float32 where random erasing adds its noise to them."""
        return np.dtype(np.float32 if self._erase else np.uint8)

    def seed(self, key: int) -> None:
        """Make what follows, for one image, a function of `key` (64 bits)."""
        random.seed(key)
        if self._color or self._erase:
            np.random.seed(key & 0xFFFFFFFF)
            torch.default_generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)

    def view(self, height: int, width: int) -> View:
        """Draw the part to look at of an image of this size."""
        if self.crop == "random_resized":
            box = random_resized_box(height, width, self.scale, self.ratio)
        else:
            box = Box(0, 0, height, width)
        several = len(self.interpolations) > 1
        interpolation = random.choice(self.interpolations) if several else self.interpolations[0]
        offset = None
        if self.crop == "pad":
            offset = random.randint(0, 2 * self.pad), random.randint(0, 2 * self.pad)
        return View(
            (height, width), box, interpolation, offset, self.hflip > 0 and random.random() < self.hflip
        )

    def render(self, pixels: Pixels, view: View, out: NDArray[Any]) -> None:
        """Fill `out` (size, size, 3), of this transform's `dtype`, from the pixels of the view's box, which may have
        been decoded smaller than stored."""
        plain = out if self._erase is None else np.empty(out.shape, np.uint8)
        if view.offset is None:
            resize_into(plain, pixels, view.interpolation)
            if view.flip:
                flip_in_place(plain)
        else:
            self._pad_crop(pixels, view, plain)
        if self._color:
            plain[:] = np.asarray(self._color(Image.fromarray(plain)))
        if self._erase:
            target = torch.from_numpy(out).permute(2, 0, 1)
            target.copy_(self.normalize(torch.from_numpy(plain).permute(2, 0, 1)))
            self._erase(target)

    def _pad_crop(self, pixels: Pixels, view: View, out: Pixels) -> None:
        """Reflection padding, random crop and flip as one gather of rows and columns: 20 µs for 32 px images,
        torchvision's Pad, RandomCrop and RandomHorizontalFlip about 90."""
        assert self._reflected is not None and view.offset is not None
        if pixels.shape != out.shape:
            resize_into(out, pixels, view.interpolation)
            pixels = out.copy()
        top, left = view.offset
        rows, columns = self._reflected[top : top + self.size], self._reflected[left : left + self.size]
        out[:] = pixels[rows[:, None], columns[::-1] if view.flip else columns]

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image → normalised float32 [3, size, size], with whatever seed the generators have."""
        pixels = np.asarray(_to_rgb(image))
        out = np.empty((self.size, self.size, 3), self.dtype)
        view = self.view(*pixels.shape[:2])
        self.render(view.box.cut(pixels, view.stored), view, out)
        tensor = torch.from_numpy(out).permute(2, 0, 1).contiguous()
        return tensor if self._erase else self.normalize(tensor)


train_transform = TrainTransform


def check_augmentation(
    image_size: int, *, crop: str, pad: int, interpolation: str, rand_augment: str | None
) -> None:
    """Raises ValueError for arguments of `TrainTransform` that it refuses, without making it: the libraries that
    augment take seconds to import."""
    if crop not in ("random_resized", "pad", "none"):
        raise ValueError(f"crop must be random_resized, pad or none, not {crop!r}")
    if interpolation not in (*INTERPOLATIONS, "random"):
        raise ValueError(f"interpolation must be bilinear, bicubic or random, not {interpolation!r}")
    if rand_augment is not None:
        _check_rand_augment(rand_augment)
    if crop == "pad" and not 0 <= pad < image_size:
        raise ValueError(f"pad must lie in [0, {image_size}) for images of {image_size} px, not {pad}")


_SECTIONS: dict[str, Callable[[str], float]] = {
    "m": int, "n": int, "p": float, "mstd": float, "mmax": int, "inc": int,
}  # fmt: skip
"""timm's sections of a RandAugment specification, and their numbers; t and a name is a set of operations."""


def _check_rand_augment(spec: str) -> None:
    first, *sections = spec.split("-")
    if first != "rand":
        raise ValueError(f"rand_augment must look like 'rand-m9-mstd0.5-inc1', not {spec!r}")
    for section in sections:
        name, *rest = re.split(r"(\d.*)", section)
        if section.startswith("t") or not rest:  # of the latter timm says nothing
            continue
        if name not in _SECTIONS:
            raise ValueError(
                f"rand_augment (={spec!r}): no section is named {name!r}: choose from {', '.join(_SECTIONS)}, t"
            )
        try:
            _SECTIONS[name](rest[0])
        except ValueError:
            kind = "a whole number" if _SECTIONS[name] is int else "a number"
            raise ValueError(f"rand_augment (={spec!r}): {name} takes {kind}, not {rest[0]!r}") from None


class EvalTransform:
    """timm's recipe, by Pillow: resize the shorter side to floor(image_size / crop_pct), cut the centre.

    Of an image more than 8 times as long as it is wide only the middle is resized: of 3,000 x 1 pixels the whole would
    take 13 s and 1.5 GB, for a centre of one pixel.
    """

    def __init__(
        self,
        image_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
    ) -> None:
        self.size, self.dtype = image_size, np.dtype(np.uint8)
        self.normalize = Normalize(mean, std)
        self._resized = math.floor(image_size / crop_pct)
        self._interpolation = Image.Resampling[interpolation.upper()]

    def render(self, image: Image.Image, out: Pixels) -> None:
        """Fill `out` (size, size, 3)."""
        out[:] = self._pixels(image).permute(1, 2, 0).numpy()

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image → normalised float32 [3, size, size]."""
        return self.normalize(self._pixels(image).contiguous())

    def _pixels(self, image: Image.Image) -> Tensor:
        """Returns the pixels that the network looks at: uint8 [3, size, size]."""
        image = _to_rgb(_middle(image))
        width, height = image.size
        shorter = min(width, height)
        width, height = (int(self._resized * side / shorter) for side in (width, height))
        image = image.resize((width, height), self._interpolation)
        left, top = (_before(side, self.size) for side in (width, height))
        # Beyond the image, where `crop_pct` is above 1, the cut is black.
        cut = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


eval_transform = EvalTransform


def _before(side: int, size: int) -> int:
    """Pixels to cut off before the middle `size` of a `side`; below zero: to add."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)


def _rand_augment(
    spec: str, image_size: int, mean: Sequence[float], interpolation: str
) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import posterize, rand_augment_transform

    params: dict[str, Any] = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    if interpolation != "random":
        params["interpolation"] = Image.Resampling[interpolation.upper()]

    def posterize_to_one(image: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
        """timm asks for 0 bits at the highest magnitude; Pillow 13 refuses (older ones gave black): keep one."""
        return posterize(image, max(1, bits_to_keep), **kwargs)

    augment = rand_augment_transform(spec, params)
    for op in augment.ops:
        if op.aug_fn is posterize:
            op.aug_fn = posterize_to_one
    return augment


def _middle(image: Image.Image) -> Image.Image:
    """The middle of a very long image, `_MAX_RATIO` times as long as it is wide."""
    width, height = image.size
    longest = _MAX_RATIO * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
