"""Image files of others, opened within limits: the one door for preparation, prediction and served models.

Four formats, whatever the file's name: JPEG, PNG, BMP, WebP. Pillow knows fifty more; some start programs, others
decode at any cost. A header that promises more pixels than allowed, or more than the file can hold, is refused before
anything is decoded; so is what would make the decoder run through the image again and again.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_prep.errors import RejectedSample
from data_prep.images.jpeg import JpegHeader, expect_affordable, for_pillow, parse_header
from data_prep.images.jpeg_decode import check_jpeg
from data_prep.images.png import SIGNATURE, check_png, expect_affordable_png

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
"""Pillow's names. MPO, camera JPEGs of several pictures, are JPEGs here."""
MAX_BYTES = 1 << 30
"""Of an image file."""
MAX_SIDE = 65535
"""`.beton` keeps width and height in 16 bits."""
MAX_PIXELS = 89_478_485
"""Pillow's limit against decompression bombs: 256 MiB of RGB pixels, whatever the size of the file."""
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # the limit is an error here
_SUFFIX = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "WEBP": "webp"}


class RejectedImage(RejectedSample):
    """The image can't be used; the message says why."""


def expect_usual_size(width: int, height: int) -> None:
    """Compare an image's size with the limits.

    Raises:
        RejectedImage: it is larger.
    """
    if max(width, height) > MAX_SIDE:
        raise RejectedImage(f"{width} x {height} pixels are more than {MAX_SIDE} a side")
    if width * height > MAX_PIXELS:
        raise RejectedImage(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")


def jpeg_header(content: bytes) -> JpegHeader | None:
    """The header of an ordinary JPEG, as `parse_header` gives it, if decoding that one is affordable.

    Raises:
        RejectedSample: it has too many pixels or scans, or too few bytes for its pixels.
    """
    header = parse_header(content)
    if header is not None:
        expect_usual_size(header.width, header.height)
        expect_affordable(content, header)
    return header


def open_image(content: bytes) -> tuple[Image.Image, str]:
    """An image of one of `FORMATS`, opened but not decoded, and the suffix for files of its format.

    Raises:
        RejectedSample: it is none, or larger than the limits.
    """
    if not content:
        raise RejectedImage("the file is empty")
    if content.startswith(SIGNATURE):
        expect_usual_size(*expect_affordable_png(content))
    elif size := _webp_size(content):
        expect_usual_size(*size)
    exif = b""
    if content.startswith(b"\xff\xd8"):
        expect_affordable(content, None)
        content, exif = for_pillow(content)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise RejectedImage(f"{_kind(content)}not a JPEG, PNG, BMP or WebP image") from None
    except Image.DecompressionBombError as error:
        raise RejectedImage(f"a decompression bomb or too large: {error}") from None
    except Exception as error:
        raise RejectedImage(f"can't be opened: {reason(error)}") from None
    expect_usual_size(*image.size)
    if exif:
        image.info["exif"] = exif
    return image, _SUFFIX[str(image.format)]


def decode_image(content: bytes) -> Image.Image:
    """An image file, decoded completely and as strictly as preparation does it (`validate_images: decode`).

    The pixels are in the file's own mode and not turned; `info` holds its metadata.

    Raises:
        RejectedImage: it is empty, not an image of `FORMATS`, beyond a limit, or damaged.
    """
    try:
        if header := jpeg_header(content):
            check_jpeg(content, header)
        image, suffix = open_image(content)
        if suffix == "png":
            check_png(content)
        image.load()
    except RejectedSample as error:
        raise RejectedImage(str(error)) from None
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
        raise RejectedImage(f"can't be decoded: {reason(error)}") from None
    return image


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        RejectedImage: it has more than `MAX_BYTES`.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise RejectedImage(f"it has more than the {MAX_BYTES:,} bytes that an image can have here")
    return content


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB pixels of any image; transparency is dropped, as torchvision's loader does.

    Of 16-bit greyscale the 8 bits from the highest that is used are taken: cameras and scanners put 8, 10 or 12 bits
    into 16, whose upper byte alone would be black. (Pillow's own conversion cuts off at 255, so that nearly all turns
    white.)
    """
    if image.mode.startswith("I"):
        values = np.clip(np.asarray(image), 0, 65535)
        shift = max(0, int(values.max(initial=0)).bit_length() - 8)
        image = Image.fromarray((values >> shift).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # it changes no colour, but Pillow warns of it once for every file
    return image if image.mode == "RGB" else image.convert("RGB")


def reason(error: Exception) -> str:
    """The message without memory addresses, so that `rejected.jsonl` is the same on every run."""
    text = str(error).split(" <_io.")[0].strip()
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


_OTHER_KINDS = (
    (b"II*\0", 0, "TIFF"), (b"MM\0*", 0, "TIFF"), (b"GIF8", 0, "GIF"), (b"ftypavif", 4, "AVIF"),
    (b"ftyphei", 4, "HEIC"), (b"ftypmif1", 4, "HEIF"), (b"8BPS", 0, "Photoshop"), (b"DDS ", 0, "DDS"),
    (b"jP  ", 4, "JPEG 2000"),
    (b"\xff\x0a", 0, "JPEG XL"), (b"JXL ", 4, "JPEG XL"), (b"%!PS", 0, "PostScript"), (b"%PDF", 0, "PDF"),
    (b"P6", 0, "PPM"), (b"P5", 0, "PGM"), (b"P4", 0, "PBM"), (b"<svg", 0, "SVG"), (b"<?xml", 0, "XML"),
)  # fmt: skip
"""First bytes, where they stand, and the format's name."""


def _kind(content: bytes) -> str:
    """`a TIFF file, `, for formats that people bring."""
    found = (name for mark, place, name in _OTHER_KINDS if content[place : place + len(mark)] == mark)
    return next((f"{'an' if name[0] in 'AX' else 'a'} {name} file, " for name in found), "")


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP file; its decoder reserves memory for all pixels when it is made."""
    if len(content) < 30 or content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return None
    match content[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(content[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = content[26:28], content[28:30]
            return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF
    return None
