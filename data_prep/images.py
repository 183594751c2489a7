"""One source sample → what is stored of it: checked, hashed, shrunk if asked, in each format's form."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data_prep.config import ResizeConfig
from data_prep.digest import content_hash, pixel_hash
from data_prep.index import ENCODED, RAW_RGB

_SUFFIX = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "BMP": "bmp", "WEBP": "webp"}
_DECODERS = ["JPEG", "PNG", "BMP", "WEBP"]  # JPEG's one also opens MPO, camera JPEGs of several pictures
_LUMA_SAMPLING = {(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)}  # 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1
_MAX_SIDE = 65535  # .beton keeps width and height in 16 bits


class RejectedImage(ValueError):
    """The image can't be used; the message says why."""


@dataclass(frozen=True)
class Steps:
    """What to do with every image: shrink, decode completely, also give raw pixels for `.beton`."""

    resize: ResizeConfig | None
    validate: Literal["decode", "structure", "headers"]
    for_ffcv: bool


@dataclass(frozen=True)
class StoredImage:
    """An image as the formats store it; height and width are of the stored pixels.

    `file` (with its `suffix`) goes into WebDataset tars. `.beton` takes the same bytes where FFCV's
    decoder understands them (RGB and greyscale JPEG; `beton_encoding` ENCODED), else RGB pixels.
    """

    file: bytes
    suffix: str
    height: int
    width: int
    source_hash: bytes
    beton_payload: bytes
    beton_encoding: int
    histogram: NDArray[np.int64] | None
    """Counts of the 256 values in R, G and B, shape (3, 256), when asked for."""


def store_image(content: bytes | NDArray[np.uint8], steps: Steps, *, histogram: bool) -> StoredImage:
    """Turn a source's image file, or its pixels (height, width[, 3]), into a stored image.

    EXIF orientation is left alone, as ImageNet's conventions have it. Pixels become lossless PNG files.

    Raises:
        RejectedImage: it is empty, not an image, or can't be decoded.
    """
    if isinstance(content, np.ndarray):
        source_hash = pixel_hash(content)
        image = Image.fromarray(content)
        file, suffix = _encode(image, "PNG"), "png"
    else:
        source_hash = content_hash(content)
        image, suffix = _open(content)
        file = content
    try:
        if steps.resize and min(image.size) > steps.resize.short_side:
            image, file, suffix = _shrink(image, steps.resize)
        elif steps.validate == "decode":
            image.load()
        width, height = image.size
        payload, encoding = file, ENCODED
        if steps.for_ffcv and not _ffcv_decodes(image):
            payload, encoding = image.convert("RGB").tobytes(), RAW_RGB
        counts = np.array(image.convert("RGB").histogram(), np.int64).reshape(3, 256) if histogram else None
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
        raise RejectedImage(f"can't be decoded: {_reason(error)}") from None
    return StoredImage(file, suffix, height, width, source_hash, payload, encoding, counts)


def _ffcv_decodes(image: Image.Image) -> bool:
    """Is it a JPEG for FFCV's decoder? That is TurboJPEG, and its errors are silently stale pixels: it can't
    make RGB of CMYK, and older releases refuse unusual chroma sampling."""
    layers = [(horizontal, vertical) for _, horizontal, vertical, _ in getattr(image, "layer", [])]
    if image.mode == "RGB" and len(layers) == 3:
        return layers[0] in _LUMA_SAMPLING and layers[1:] == [(1, 1), (1, 1)]
    return image.mode == "L" and len(layers) == 1


def _open(content: bytes) -> tuple[Image.Image, str]:
    if not content:
        raise RejectedImage("the file is empty")
    try:
        image = Image.open(io.BytesIO(content), formats=_DECODERS)
    except UnidentifiedImageError:
        raise RejectedImage("not a JPEG, PNG, BMP or WebP image") from None
    except Exception as error:
        raise RejectedImage(f"can't be opened: {_reason(error)}") from None
    if max(image.size) > _MAX_SIDE:
        raise RejectedImage(f"{image.width} x {image.height} pixels are more than {_MAX_SIDE} a side")
    return image, _SUFFIX[str(image.format)]


def _shrink(image: Image.Image, resize: ResizeConfig) -> tuple[Image.Image, bytes, str]:
    scale = resize.short_side / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    file = _encode(small, "JPEG", quality=resize.quality)
    return Image.open(io.BytesIO(file)), file, "jpg"


def _encode(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    """The message without memory addresses, so that `rejected.jsonl` is the same on every run."""
    text = str(error).split(" <_io.")[0].strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
