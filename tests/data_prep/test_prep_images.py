"""What is stored of one image: hashes, forms per format, reasons of rejection."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prep_helpers import image_bytes, smooth_image

from data_prep.digest import content_hash, pixel_hash
from data_prep.images import RejectedImage, Steps, _ffcv_decodes, store_image
from data_prep.index import ENCODED, RAW_RGB

CHECKED = Steps(resize=None, validate="decode", for_ffcv=True)
HEADER_ONLY = Steps(resize=None, validate="headers", for_ffcv=False)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pixels_become_lossless_png_and_raw_rgb(height: int, width: int, colour: bool, seed: int) -> None:
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    stored = store_image(pixels, CHECKED, histogram=True)
    assert (stored.suffix, stored.height, stored.width) == ("png", height, width)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored.file))), pixels)
    rgb = pixels if colour else np.repeat(pixels[..., None], 3, axis=2)
    assert stored.beton_encoding == RAW_RGB
    assert stored.beton_payload == rgb.tobytes()
    assert stored.source_hash == pixel_hash(pixels)
    assert stored.histogram is not None
    assert stored.histogram.sum(axis=1).tolist() == [height * width] * 3


def test_pixel_hash_tells_shapes_apart() -> None:
    pixels = np.zeros(12, np.uint8)
    shapes: list[tuple[int, ...]] = [(3, 4), (4, 3), (2, 2, 3), (1, 4, 3)]
    assert len({pixel_hash(pixels.reshape(shape)) for shape in shapes}) == 4


@pytest.mark.parametrize(
    ("mode", "kind", "suffix", "encoding"),
    [
        ("RGB", "JPEG", "jpg", ENCODED),
        ("L", "JPEG", "jpg", ENCODED),
        ("CMYK", "JPEG", "jpg", RAW_RGB),
        ("RGB", "PNG", "png", RAW_RGB),
        ("RGBA", "PNG", "png", RAW_RGB),
        ("P", "PNG", "png", RAW_RGB),
        ("RGB", "BMP", "bmp", RAW_RGB),
        ("RGB", "WEBP", "webp", RAW_RGB),
    ],
)
def test_files_pass_through(mode: str, kind: str, suffix: str, encoding: int) -> None:
    content = image_bytes(smooth_image(0, mode=mode), kind)
    stored = store_image(content, CHECKED, histogram=False)
    assert (stored.file, stored.suffix, stored.beton_encoding) == (content, suffix, encoding)
    assert (stored.width, stored.height) == (24, 20)
    assert stored.source_hash == content_hash(content)
    assert stored.histogram is None
    if encoding == RAW_RGB:
        assert stored.beton_payload == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def test_exif_orientation_is_left_alone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    smooth_image(0).save(buffer, "JPEG", exif=exif)
    stored = store_image(buffer.getvalue(), CHECKED, histogram=False)
    assert (stored.file, stored.width, stored.height) == (buffer.getvalue(), 24, 20)


@pytest.mark.parametrize(
    ("mode", "layers", "decodes"),
    [
        ("RGB", [(1, 2, 2, 0), (2, 1, 1, 1), (3, 1, 1, 1)], True),
        ("RGB", [(1, 1, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)], True),
        ("RGB", [(1, 3, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)], False),
        ("RGB", [(1, 2, 2, 0), (2, 2, 1, 1), (3, 1, 1, 1)], False),
        ("L", [(1, 2, 2, 0)], True),
        ("CMYK", [(1, 1, 1, 0)] * 4, False),
        ("RGB", [], False),
    ],
)
def test_jpegs_that_ffcv_would_misread_are_stored_raw(mode: str, layers: list[Any], decodes: bool) -> None:
    assert _ffcv_decodes(SimpleNamespace(mode=mode, layer=layers)) == decodes  # type: ignore[arg-type]


def test_reasons_of_rejection_are_the_same_on_every_run() -> None:
    whole = image_bytes(smooth_image(0, (100, 100)))
    for content, message in [
        (b"", "the file is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not a JPEG, PNG, BMP or WebP image$"),
        (whole[:400], "can't be opened: OSError"),
        (whole[:-400], "can't be decoded: OSError: image file is truncated"),
        (image_bytes(smooth_image(0, (99, 99)), "PNG")[:200], "can't be decoded"),
    ]:
        reasons = set()
        for _ in range(2):
            with pytest.raises(RejectedImage, match=f"^{message}") as raised:
                store_image(bytes(content), CHECKED, histogram=False)
            reasons.add(str(raised.value))
        assert len(reasons) == 1
        assert "0x" not in reasons.pop()


def test_without_validation_only_headers_are_read() -> None:
    whole = image_bytes(smooth_image(0, (100, 100)))
    stored = store_image(whole[:700], HEADER_ONLY, histogram=False)
    assert (stored.width, stored.height) == (100, 100)
