"""What is stored of one image: hashes, forms per format, reasons of rejection."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from prep_helpers import image_bytes, smooth_image

from data_prep.config import ResizeConfig
from data_prep.dataset.checksums import content_hash, pixel_hash
from data_prep.dataset.index import ENCODED, RAW_RGB
from data_prep.images.check_image import RejectedImage, Steps, StoredImage, store_image, suits_ffcv, to_rgb
from data_prep.images.jpeg import JpegHeader

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
    ("sampling", "decodes"),
    [
        ([(2, 2), (1, 1), (1, 1)], True),
        ([(1, 1), (1, 1), (1, 1)], True),
        ([(4, 1), (1, 1), (1, 1)], True),
        ([(3, 1), (1, 1), (1, 1)], False),
        ([(2, 2), (2, 1), (1, 1)], False),
        ([(2, 2)], True),
        ([(1, 1)] * 4, False),
    ],
)
def test_jpegs_that_ffcv_would_misread_are_stored_raw(sampling: list[tuple[int, int]], decodes: bool) -> None:
    assert suits_ffcv(JpegHeader(8, 8, tuple(sampling), False, 0, ())) == decodes


def test_reasons_of_rejection_are_the_same_on_every_run() -> None:
    whole = image_bytes(smooth_image(0, (100, 100)))
    for content, message in [
        (b"", "the file is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PostScript file, not a JPEG, PNG, BMP or WebP image$"),
        (whole[:400], "can't be opened: OSError"),
        (whole[:-400], "damaged JPEG data: Premature end of JPEG file"),
        (image_bytes(smooth_image(0, (99, 99)), "PNG")[:200], "damaged PNG data"),
    ]:
        reasons = set()
        for _ in range(2):
            with pytest.raises(RejectedImage, match=f"^{message}") as raised:
                store_image(bytes(content), CHECKED, histogram=False)
            reasons.add(str(raised.value))
        assert len(reasons) == 1
        assert "0x7" not in reasons.pop()


def test_without_validation_only_headers_are_read() -> None:
    whole = image_bytes(smooth_image(0, (100, 100)))
    stored = store_image(whole[:700], HEADER_ONLY, histogram=False)
    assert (stored.width, stored.height) == (100, 100)


def shrunk(content: bytes | NDArray[np.uint8], short_side: int) -> StoredImage:
    steps = Steps(ResizeConfig(short_side=short_side, quality=95), validate="structure", for_ffcv=True)
    return store_image(content, steps, histogram=True)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "pixels"])
def test_shrinking(mode: str, kind: str) -> None:
    image = smooth_image(5, (300, 200), mode=mode)
    if kind == "pixels":
        image = image.convert("RGB")
        content: bytes | NDArray[np.uint8] = np.asarray(image)
    else:
        image = image.convert("RGB") if mode == "CMYK" and kind == "PNG" else image
        content = image_bytes(image, kind)
    stored = shrunk(content, 40)
    assert (stored.height, stored.width, stored.source_size) == (40, 60, (200, 300))
    assert (stored.suffix, stored.beton_encoding, stored.beton_payload) == ("jpg", ENCODED, stored.file)
    source = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else Image.fromarray(content)
    expected = source.convert("RGB").resize((60, 40), Image.Resampling.BICUBIC)
    found = np.asarray(Image.open(io.BytesIO(stored.file)), np.int16)
    assert np.abs(found - np.asarray(expected, np.int16)).mean() < 3
    assert shrunk(content, 40).file == stored.file
    assert stored.histogram is not None and stored.histogram.sum() == 3 * 60 * 40


def test_small_images_are_not_shrunk_and_damaged_ones_are_rejected() -> None:
    content = image_bytes(smooth_image(5, (300, 200)))
    assert shrunk(content, 200).file == content
    with pytest.raises(RejectedImage, match="damaged JPEG data"):
        shrunk(content[: len(content) // 2], 40)


def test_16_bit_greyscale_is_scaled_and_stored_with_8_bits() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    stored = store_image(buffer.getvalue(), CHECKED, histogram=True)
    expected = (values >> 8).astype(np.uint8)
    assert stored.source_hash == content_hash(buffer.getvalue())
    with Image.open(io.BytesIO(stored.file)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert stored.beton_payload == np.repeat(expected[..., None], 3, axis=2).tobytes()
    np.testing.assert_array_equal(
        np.asarray(to_rgb(Image.fromarray(expected.astype(np.int32) << 8))),
        np.repeat(expected[..., None], 3, 2),
    )
