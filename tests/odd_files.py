"""Image files as the world has them: unusual, damaged, mislabelled, oddly named."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from prep_helpers import image_bytes, smooth_image

Pixels = NDArray[np.uint8]


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of unfiltered rows; `depth` bits a channel, `colour` 0 grey or 2 RGB."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + png_chunk(b"IEND", b"")
    )


def deep_png(channels: int) -> tuple[bytes, Pixels]:
    """A 16-bit PNG of 1 or 3 channels, and the 8-bit RGB pixels that it stands for."""
    shape = (20, 24, channels)
    values = np.random.default_rng(channels).integers(0, 65536, shape, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    upper = (values >> 8).astype(np.uint8)
    return png(24, 20, 16, 0 if channels == 1 else 2, rows), np.broadcast_to(upper, (20, 24, 3))


def rgb(content: bytes) -> Pixels:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_height(jpeg: bytes, height: int) -> bytes:
    position = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:position] + struct.pack(">H", height) + jpeg[position + 2 :]


def good_files() -> dict[str, tuple[bytes, Pixels]]:
    """Name → content and the RGB pixels that a reader must see."""
    image = smooth_image(3)
    orientation = Image.Exif()
    orientation[0x0112] = 6
    files = {
        "cmyk.jpg": image_bytes(smooth_image(1, mode="CMYK")),
        "ycck.jpg": simplejpeg.encode_jpeg(
            np.array(smooth_image(1, mode="CMYK")), colorspace="CMYK", colorsubsampling="420"
        ),
        "really_a_png.JPEG": image_bytes(smooth_image(2), "PNG"),
        "really_a_bmp.png": image_bytes(smooth_image(2), "BMP"),
        "turned_by_exif.jpg": saved(image, "JPEG", exif=orientation),
        "grey.jpg": image_bytes(smooth_image(4, mode="L")),
        "progressive.jpg": saved(image, "JPEG", progressive=True),
        "4_4_0.jpg": simplejpeg.encode_jpeg(np.array(image), colorsubsampling="440"),
        "bytes_after_the_end.jpg": image_bytes(smooth_image(5)) + b"preview" * 50,
        "palette.png": saved(image.quantize(16), "PNG", transparency=3),
        "palette_of_transparencies.png": saved(
            image.quantize(16), "PNG", transparency=bytes(range(0, 160, 10))
        ),
        "transparent.png": image_bytes(smooth_image(6, mode="RGBA"), "PNG"),
        "grey_transparent.png": image_bytes(smooth_image(7, mode="LA"), "PNG"),
        "black_and_white.png": image_bytes(smooth_image(7, mode="1"), "PNG"),
        "animated.webp": saved(
            image, "WEBP", save_all=True, append_images=[smooth_image(9), smooth_image(10)], lossless=True
        ),
        "animated.png": saved(image, "PNG", save_all=True, append_images=[smooth_image(9)]),
        "one_pixel.jpg": image_bytes(smooth_image(8, (1, 1))),
        "dots.in.its.name.jpg": image_bytes(smooth_image(11)),
        " spaces  .jpg": image_bytes(smooth_image(12)),
        "new\nline\t.jpg": image_bytes(smooth_image(13)),
        "日本語 naïve %2F 😀.jpg": image_bytes(smooth_image(14)),
        b"not_utf8_\xff\xfe.jpg".decode(errors="surrogateescape"): image_bytes(smooth_image(15)),
        "--option=$(x);.jpg": image_bytes(smooth_image(16)),
        "twin.jpg": image_bytes(smooth_image(17)),
        "twin.png": image_bytes(smooth_image(18), "PNG"),
        "twin.jpg.png": image_bytes(smooth_image(19), "PNG"),
        "TWIN.jpg": image_bytes(smooth_image(20)),
        "x" * 240 + ".jpg": image_bytes(smooth_image(21)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's advice to keep a palette's transparencies
        known = {name: (content, rgb(content)) for name, content in files.items()}
    return known | {"deep_grey.png": deep_png(1), "deep_rgb.png": deep_png(3)}


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Name → content and the start of the reason for which it is rejected."""
    whole = image_bytes(smooth_image(30, (90, 80)))
    lossless = image_bytes(smooth_image(31, (90, 80)), "PNG")
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    coded = image_bytes(Image.fromarray(noise))
    scan = coded.index(b"\xff\xda")
    rows = bytes(20 * (1 + 24 * 3))
    return {
        "bomb_of_100_megapixels.png": (
            png(10_000, 10_000, 8, 2, b""),
            "10000 x 10000 pixels are more than the limit of 89,478,485",
        ),
        "bomb_of_4_gigapixels.png": (
            png(64_000, 64_000, 8, 2, b""),
            "64000 x 64000 pixels are more than the limit of 89,478,485",
        ),
        "bomb.jpg": (
            with_height(image_bytes(smooth_image(0, (2000, 8))), 65_000),
            "2000 x 65000 pixels are more",
        ),
        "cut_in_its_header.jpg": (whole[:100], "can't be opened: "),
        "cut_in_its_pixels.jpg": (whole[:-100], "damaged JPEG data: Premature end of JPEG file"),
        "cut_in_its_pixels.png": (
            lossless[: len(lossless) // 2],
            "damaged PNG data: the checksum of a chunk IDAT is wrong",
        ),
        "damaged_pixels.jpg": (
            coded[: scan + 300] + coded[scan + 900 :],
            "damaged JPEG data: Corrupt JPEG data: ",
        ),
        "document.jpg": (b"%PDF-1.7 nothing to see", "a PDF file, not a JPEG, PNG, BMP or WebP image"),
        "empty.jpg": (b"", "the file is empty"),
        "film.png": (saved(smooth_image(1), "GIF"), "a GIF file, not a JPEG, PNG, BMP or WebP image"),
        "higher_than_its_pixels.jpg": (
            with_height(coded, 500),
            "damaged JPEG data: Corrupt JPEG data: premature end",
        ),
        "higher_than_its_pixels.png": (
            png(24, 200, 8, 2, rows),
            "damaged PNG data: 1460 bytes of pixels, its header promises 14600",
        ),
        "page.jpg": (b"<html>404 Not Found</html>", "not a JPEG, PNG, BMP or WebP image"),
        "too_wide.png": (png(70_000, 1, 8, 0, bytes(70_001)), "70000 x 1 pixels are more than 65535 a side"),
        "zeros.jpg": (bytes(5000), "not a JPEG, PNG, BMP or WebP image"),
    }
