"""The images of a request, from files' bytes, texts and arrays, within limits.

Texts are never taken for paths or addresses: a request must not make its server read files or ask other servers.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.errors import ConfigError, DataError
from data_prep.errors import RejectedSample
from data_prep.images.image_file import expect_usual_size, open_image

_FORMS = (
    "an image must be a file's bytes, its base64 text, a data URL of it (data:image/jpeg;base64,...), or pixels: "
    "whole numbers 0 to 255 of shape [height, width, 3]"
)


@dataclass(frozen=True)
class BatchLimits:
    """Limits of one request, beside those of every image file. A batch beyond them is refused before it is decoded."""

    max_images: int = 1024
    max_bytes: int = 128 << 20
    """Of all files and pixels as they were given, base64 undone."""
    max_pixels: int = 2_000_000_000
    """Of all images, by their headers: a small file may have many."""

    @classmethod
    def from_environment(cls) -> BatchLimits:
        """CONVMLP_SERVE_MAX_IMAGES, CONVMLP_SERVE_MAX_BYTES and CONVMLP_SERVE_MAX_PIXELS where they are set.

        Raises:
            ConfigError: one is no positive whole number.
        """
        return cls(**{one.name: _setting(_variable(one.name), one.default) for one in fields(cls)})

    def expect(self, name: str, count: int, what: str) -> None:
        """Compare a batch's `count` with the limit `name`; `what` is the noun for the message.

        Raises:
            DataError: it is more.
        """
        limit = getattr(self, name)
        if count > limit:
            raise DataError(
                f"the batch has {count:,} {what}, more than the {limit:,} that one request may have: send it in parts, "
                f"or serve the model with a larger {_variable(name)}"
            )


def given_images(
    images: Sequence[object], limits: BatchLimits, threads: Executor
) -> list[bytes | Image.Image | DataError]:
    """Returns each image as its file's bytes or as pixels, or the error that says why it is none.

    Raises:
        DataError: the batch is beyond a limit.
    """
    limits.expect("max_images", len(images), "images")
    limits.expect("max_bytes", sum(map(_size, images)), "bytes of images")
    found = list(threads.map(_given, images, range(len(images))))
    limits.expect("max_pixels", sum(pixels for _, pixels in found), "pixels")
    return [image for image, _ in found]


def _given(image: object, position: int) -> tuple[bytes | Image.Image | DataError, int]:
    """The image, and its number of pixels; 0 where its header can't be read, of which decoding will tell."""
    try:
        given = _file_or_pixels(image)
    except (ValueError, OverflowError, MemoryError) as error:
        return DataError(f"image {position}: {str(error) or type(error).__name__}"), 0
    try:
        opened = given if isinstance(given, Image.Image) else open_image(given)[0]
    except RejectedSample:
        return given, 0
    return given, opened.width * opened.height


def _file_or_pixels(image: Any) -> bytes | Image.Image:
    if isinstance(image, np.ndarray) and image.ndim == 0:
        image = image.item()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, str):
        return _file_of_text(image)
    if isinstance(image, np.ndarray) and image.dtype != object:
        return _image_of(image)
    if isinstance(image, (list, tuple, np.ndarray)):
        return _image_of(_array_of(image.tolist() if isinstance(image, np.ndarray) else image))
    raise ValueError(f"{_FORMS}; it is {'missing' if _is_missing(image) else type(image).__name__}")


def _file_of_text(text: str) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("a data URL of an image must hold base64: data:image/jpeg;base64,...")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"a text must be the base64 of an image file, or a data URL; paths and addresses are not read ({error})"
        ) from None


def _array_of(rows: Sequence[Any]) -> NDArray[np.int64]:
    """Nested lists as an array. NumPy itself would take texts for numbers, and cut off fractions."""
    array = np.array(rows, dtype=object)
    kinds = set(map(type, array.ravel().tolist())) if array.ndim == 3 else {list}
    if not all(issubclass(kind, (int, np.integer)) and kind is not bool for kind in kinds):
        raise ValueError(f"{_FORMS}; it is a list of something else")
    return array.astype(np.int64)


def _image_of(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype.kind not in "iu" or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"{_FORMS}; it is an array of {pixels.dtype} and shape {list(pixels.shape)}")
    expect_usual_size(pixels.shape[1], pixels.shape[0])
    if pixels.dtype != np.uint8 and (pixels.min() < 0 or pixels.max() > 255):
        raise ValueError(f"{_FORMS}; it has values from {pixels.min()} to {pixels.max()}")
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))


def _size(image: Any) -> int:
    """Bytes of an image as it was given; of nested lists as their first row says."""
    if isinstance(image, str):
        return len(image) * 3 // 4
    if isinstance(image, np.ndarray):
        return int(image.size)
    if isinstance(image, (list, tuple)):
        first = image[0] if image else ()
        return len(image) * (3 * len(first) if isinstance(first, (list, tuple)) else 1)
    return len(image) if isinstance(image, (bytes, bytearray, memoryview)) else 0


def _is_missing(image: Any) -> bool:
    return image is None or (isinstance(image, float) and image != image)


def _variable(name: str) -> str:
    return f"CONVMLP_SERVE_{name.upper()}"


def _setting(name: str, default: Any) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal() or int(text) < 1:
        raise ConfigError(f"{name} (={text!r}) must be a positive whole number")
    return int(text)
