"""Boxes decoded alone: bit for bit what decoding the whole image gives there, in both ways, damage included."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from prep_helpers import smooth_image

from convmlp.transforms.pixels import Box
from convmlp_platform.data.dataset.split import decode, decode_seen
from data_prep.images import jpeg_box
from data_prep.images.jpeg import first_marker, parse_header
from data_prep.images.jpeg_box import Rectangle, decode_box, eighths_for, header_for_boxes, size_at
from data_prep.images.orientation import stored_rectangle, turned_pixels, turned_size

SAMPLINGS = ("444", "422", "440", "420", "411", "Gray")


def encoded(height: int, width: int, sampling: str, quality: int, seed: int = 0) -> bytes:
    draw = np.random.default_rng(seed)
    pixels = np.array(smooth_image(seed, (width, height), "RGB"))
    pixels[: height // 2] = draw.integers(0, 256, (height // 2, width, 3))
    if sampling == "Gray":
        return simplejpeg.encode_jpeg(
            pixels[..., :1].copy(), quality, colorspace="Gray", colorsubsampling="Gray"
        )
    return simplejpeg.encode_jpeg(pixels, quality, colorsubsampling=sampling)


def whole(content: bytes, smallest: tuple[int, int]) -> np.ndarray:
    return simplejpeg.decode_jpeg(
        content, fastdct=True, fastupsample=True, min_height=smallest[0], min_width=smallest[1], min_factor=2
    )


@pytest.fixture(params=["compiled", "simplejpeg"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "simplejpeg":
        monkeypatch.setattr(jpeg_box, "_compiled", lambda: (None, "a test"))
    elif jpeg_box._compiled()[0] is None:
        pytest.skip(jpeg_box.way_of_decoding())
    return request.param


def in_both_ways(use: Callable[[], object]) -> list[object]:
    """What it gives with the compiled module, where there is one, and without it."""
    found = [use()]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jpeg_box, "_compiled", lambda: (None, "a test"))
        found.append(use())
    return found


@st.composite
def boxes(draw: st.DrawFn) -> tuple[bytes, Rectangle, int, tuple[int, int]]:
    """A JPEG, a box of the image at a scale, the scale in eighths, and the smallest size that leads to it."""
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    content = encoded(
        height, width, draw(st.sampled_from(SAMPLINGS)), draw(st.integers(5, 100)), draw(st.integers(0, 9))
    )
    smallest = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    header = header_for_boxes(content)
    assume(header is not None)
    assert header is not None
    eighths = eighths_for(header, smallest)
    rows, columns = size_at(header, eighths)
    top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    return (
        content,
        (top, left, draw(st.integers(1, rows - top)), draw(st.integers(1, columns - left))),
        eighths,
        smallest,
    )


@settings(max_examples=300, deadline=None)
@given(boxes())
def test_a_box_s_pixels_are_those_of_the_whole_image(
    drawn: tuple[bytes, Rectangle, int, tuple[int, int]],
) -> None:
    content, box, eighths, smallest = drawn
    header = header_for_boxes(content)
    assert header is not None
    image = whole(content, smallest)
    assert size_at(header, eighths) == image.shape[:2]
    top, left, height, width = box
    for found in in_both_ways(lambda: decode_box(content, header, box, eighths)):
        np.testing.assert_array_equal(found, image[top : top + height, left : left + width])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32 - 1), st.sampled_from(SAMPLINGS))
def test_boxes_of_turned_images_are_those_of_the_turned_whole(
    orientation: int, key: int, sampling: str
) -> None:
    draw = np.random.default_rng(key)
    content = encoded(61, 90, sampling, 80)
    stored = turned_size(61, 90, orientation)
    top, left = (int(draw.integers(0, side)) for side in stored)
    box = Box(
        top, left, int(draw.integers(1, stored[0] - top + 1)), int(draw.integers(1, stored[1] - left + 1))
    )
    smallest = turned_size(*((61, 90) if key % 2 else (20, 30)), orientation)
    expected = box.cut(decode(content, smallest, orientation=orientation), stored)
    for found in in_both_ways(lambda: decode_seen(content, box, stored, smallest, orientation=orientation)):
        np.testing.assert_array_equal(found, expected)
    place = stored_rectangle(box, stored, orientation)
    mark = np.zeros((61, 90, 3), np.uint8)
    mark[place[0] : place[0] + place[2], place[1] : place[1] + place[3]] = 1
    turned = turned_pixels(mark, orientation)
    assert turned.sum() == box.cut(turned, stored).sum() == 3 * box.height * box.width


def pillows(mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    smooth_image(3, (90, 61), "RGB").convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


PLAIN = pillows()
DECODED_WHOLE = {
    "progressive": pillows(progressive=True),
    "CMYK": pillows("CMYK"),
    "restart markers": pillows(restart_marker_rows=1),
    "padding": PLAIN[:-2] + b"\x00\x00\xff\xd9",
    "a picture behind it": PLAIN + PLAIN,
    "bytes behind it": PLAIN + b"film",
    "no end": PLAIN[:-2],
    "a PNG": b"\x89PNG\r\n\x1a\n",
}


@pytest.mark.parametrize("kind", DECODED_WHOLE)
def test_files_of_other_kinds_are_decoded_whole(kind: str) -> None:
    content = DECODED_WHOLE[kind]
    assert header_for_boxes(PLAIN) and header_for_boxes(content) is None
    if kind not in ("no end", "a PNG"):
        expected = decode(content, (61, 90))[20:30, 40:70]
        np.testing.assert_array_equal(decode_seen(content, Box(20, 40, 10, 30), (61, 90), (61, 90)), expected)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SAMPLINGS))
def test_damage_is_met_alike_in_both_ways(key: int, sampling: str) -> None:
    draw = np.random.default_rng(key)
    content = bytearray(encoded(120, 100, sampling, 70))
    header = parse_header(bytes(content))
    assert header is not None
    for _ in range(int(draw.integers(1, 4))):
        content[int(draw.integers(header.scan + 14, len(content)))] ^= 1 << int(draw.integers(0, 8))
    assume(header_for_boxes(bytes(content)))
    top = int(draw.integers(0, 100))
    box = (top, int(draw.integers(0, 50)), int(draw.integers(1, 120 - top + 1)), 50)
    one, other = in_both_ways(lambda: decode_box(bytes(content), header, box, 8))
    assert (one is None) == (other is None)
    if one is not None:
        np.testing.assert_array_equal(one, other)


def test_damage_in_a_box_is_left_to_the_whole_decode_and_damage_below_is_not_seen(way: str) -> None:
    content = bytearray(encoded(160, 100, "420", 90))
    header = header_for_boxes(bytes(content))
    assert header is not None
    box = (0, 0, 16, 100)
    expected = decode_box(bytes(content), header, box, 8)
    tail = len(content) - 40
    del content[tail:-2]
    content[-3] = 0x55
    damaged = bytes(content)
    assert header_for_boxes(damaged)
    with pytest.raises(ValueError):
        whole(damaged, (160, 100))
    np.testing.assert_array_equal(decode_box(damaged, header, box, 8), expected)
    assert decode_box(damaged, header, (150, 0, 10, 10), 8) is None
    pillow = np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))
    seen = decode_seen(damaged, Box(150, 0, 10, 10), (160, 100), (160, 100))
    np.testing.assert_array_equal(seen, pillow[150:, :10])


def test_the_compiled_module_refuses_what_it_can_t_do() -> None:
    module, reason = jpeg_box._compiled()
    if module is None:
        pytest.skip(reason)
    out = bytearray(30)
    cases = [
        (PLAIN, bytearray(29), (0, 0, 2, 5, 8), "height \\* width \\* 3"),
        (PLAIN, out, (-1, 0, 2, 5, 8), "no rectangle"),
        (PLAIN, out, (0, 0, 2, 5, 9), "no rectangle"),
        (PLAIN, out, (0, 0, 2, 1 << 60, 8), "no rectangle"),
        (PLAIN, out, (60, 0, 2, 5, 8), "not within"),
        (PLAIN, out, (0, 86, 2, 5, 8), "not within"),
        (PLAIN, out, (30, 0, 2, 5, 4), "not within"),
        (DECODED_WHOLE["progressive"], out, (0, 0, 2, 5, 8), "several scans"),
        (DECODED_WHOLE["CMYK"], out, (0, 0, 2, 5, 8), "three components"),
        (b"", out, (0, 0, 2, 5, 8), "Empty input"),
        (b"no JPEG", out, (0, 0, 2, 5, 8), "Not a JPEG"),
        (PLAIN[:300], out, (0, 0, 2, 5, 8), "Premature end"),
    ]
    for content, room, rest, reason in cases:
        with pytest.raises(ValueError, match=reason):
            module.crop(content, room, *rest)
    with pytest.raises((TypeError, BufferError)):
        module.crop(PLAIN, bytes(30), 0, 0, 2, 5, 8)
    module.crop(PLAIN, out, 59, 85, 2, 5, 8)


@given(st.lists(st.sampled_from([0x00, 0x01, 0xD9, 0xFF]), max_size=12).map(bytes), st.integers(0, 12))
def test_the_first_marker(content: bytes, start: int) -> None:
    start = min(start, len(content))
    places = [at for at in range(start, len(content) - 1) if content[at] == 0xFF and content[at + 1]]
    expected = places[0] if places else -1
    assert first_marker(content, start) == expected
    if (module := jpeg_box._compiled()[0]) is not None:
        assert module.first_marker(content, start) == expected


def test_a_module_that_gives_other_pixels_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off:
        first_marker = staticmethod(first_marker)

        @staticmethod
        def crop(content: bytes, out: np.ndarray, *_place: int) -> None:
            out[:] = 7

    monkeypatch.setitem(__import__("sys").modules, "_convmlp_jpeg", Off)
    jpeg_box._compiled.cache_clear()
    try:
        assert jpeg_box._compiled()[0] is None
        assert "aren't simplejpeg's" in jpeg_box.way_of_decoding()
        jpeg_box._compiled.cache_clear()
        monkeypatch.delattr(Off, "first_marker")
        assert "first_marker" in jpeg_box.way_of_decoding()
    finally:
        jpeg_box._compiled.cache_clear()
