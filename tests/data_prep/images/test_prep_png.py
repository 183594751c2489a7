"""PNG files: whole ones pass, interlaced or not; every flipped bit in their pixels and every missing row is found."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_files import png
from PIL import Image
from prep_helpers import image_bytes, smooth_image

from data_prep.errors import RejectedSample
from data_prep.images.png import check_png

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def rows_of(pixels: np.ndarray) -> bytes:
    """Unfiltered rows of 8-bit pixels of shape (height, width, channels)."""
    return b"".join(b"\0" + row.tobytes() for row in pixels if row.size)


def interlaced(pixels: np.ndarray) -> bytes:
    """The same pixels in the seven passes of Adam7."""
    height, width, channels = pixels.shape
    rows = b"".join(rows_of(pixels[y::dy, x::dx]) for x, y, dx, dy in PASSES)
    content = png(width, height, 8, 0 if channels == 1 else 2, rows)
    header = content[12:28] + b"\x01"
    return content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:]


@given(st.integers(1, 19), st.integers(1, 19), st.sampled_from([1, 3]))
@settings(max_examples=60, deadline=None)
def test_interlaced_files_are_measured_right(height: int, width: int, channels: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    for content, rows in (
        (interlaced(pixels), b"".join(rows_of(pixels[y::dy, x::dx]) for x, y, dx, dy in PASSES)),
        (png(width, height, 8, 0 if channels == 1 else 2, rows_of(pixels)), rows_of(pixels)),
    ):
        check_png(content)
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(content))), pixels.squeeze(2) if channels == 1 else pixels
        )
        start = content.index(b"IDAT") - 4
        short = png(width, height, 8, 0 if channels == 1 else 2, rows[:-1])
        short = content[:start] + short[short.index(b"IDAT") - 4 :]
        with pytest.raises(
            RejectedSample, match=f"{len(rows) - 1} bytes of pixels, its header promises {len(rows)}"
        ):
            check_png(short)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_all_modes_pass(mode: str) -> None:
    for size in ((1, 1), (7, 3), (300, 200)):
        image = smooth_image(0, size)
        if mode == "I;16":
            image = Image.fromarray(np.ones(size[::-1], np.uint16))
        else:
            image = image.quantize(8) if mode == "P" else image.convert(mode)
        check_png(image_bytes(image, "PNG"))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_flipped_bit_of_the_pixels_and_every_truncation_is_found(data: st.DataObject) -> None:
    content = image_bytes(smooth_image(2, (40, 30)), "PNG")
    start, end = content.index(b"IDAT"), content.index(b"IEND") - 4
    flipped = bytearray(content)
    flipped[data.draw(st.integers(start, end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(flipped), content[: data.draw(st.integers(8, len(content) - 9))]):
        with pytest.raises(RejectedSample, match="damaged PNG data"):
            check_png(damaged)
