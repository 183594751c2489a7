"""The JPEG parser and the strict decoder: what Pillow sees, what truncation and damage do to it."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prep_helpers import smooth_image

from data_prep.errors import RejectedSample
from data_prep.images.check_image import RejectedImage, Steps, store_image, suits_ffcv
from data_prep.images.jpeg import JpegHeader, is_complete, parse_header, without_metadata
from data_prep.images.jpeg_decode import check_jpeg, decode_jpeg

STRUCTURE = Steps(resize=None, validate="structure", for_ffcv=True)
SIZE = (96, 64)


def encode(mode: str = "RGB", noise: int = 0, **options: object) -> bytes:
    image = smooth_image(1, SIZE, "RGB")
    if noise:
        rng = np.random.default_rng(noise)
        image = Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


VARIANTS = {
    "420": encode(noise=1),
    "422": encode(noise=2, subsampling=1),
    "444": encode(noise=3, subsampling=0),
    "grey": encode("L", noise=4),
    "cmyk": encode("CMYK", noise=5),
    "progressive": encode(noise=6, progressive=True),
    "restarts": encode(noise=7, restart_marker_rows=1),
    "metadata": encode(
        noise=8, icc_profile=bytes(100_000), comment=b"\xff\xd9\xff\xda" * 20, exif=bytes(900)
    ),
}


def header_of(content: bytes) -> JpegHeader:
    header = parse_header(content)
    assert header is not None
    return header


def pillow_rgb(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def assert_same_as_pillow(content: bytes) -> None:
    header = header_of(content)
    with Image.open(io.BytesIO(content)) as image:
        layers = [(horizontal, vertical) for _, horizontal, vertical, _ in image.layer]  # type: ignore[attr-defined]
        assert (header.width, header.height, list(header.sampling)) == (*image.size, layers)
        assert header.progressive == bool(image.info.get("progressive"))
    assert is_complete(content, header)
    check_jpeg(content, header)
    np.testing.assert_array_equal(decode_jpeg(content, header), pillow_rgb(content))


@pytest.mark.parametrize("content", VARIANTS.values(), ids=VARIANTS)
def test_the_parser_and_the_decoder_agree_with_pillow(content: bytes) -> None:
    assert_same_as_pillow(content)
    bare = without_metadata(content, header_of(content))
    assert b"JFIF" not in bare and is_complete(bare, header_of(bare))


@pytest.mark.real_data
@pytest.mark.parametrize("pack", ["imagenet_sample", "coco"])
def test_the_parser_and_the_decoder_agree_with_pillow_on_real_files(pack: str) -> None:
    folder = Path(os.environ.get("CONVMLP_TEST_DATA", "")) / pack
    if not os.environ.get("CONVMLP_TEST_DATA") or not folder.is_dir():
        pytest.skip(f"CONVMLP_TEST_DATA does not name a folder that holds {pack}/")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    assert len(files) > 200
    for path in files:
        content = path.read_bytes()
        assert_same_as_pillow(content)
        assert suits_ffcv(header_of(content))


@pytest.mark.parametrize("content", VARIANTS.values(), ids=VARIANTS)
def test_every_truncation_is_found_without_decoding(content: bytes) -> None:
    header = header_of(content)
    for end in range(header.scan + 20, len(content) - 1, 97):
        assert not is_complete(content[:end], header)
    for tail in (b"\xff", b"garbage", content):  # phones append previews and films
        assert is_complete(content + tail, header)


@given(st.sampled_from(sorted(VARIANTS)), st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_files_are_stored_or_rejected_but_nothing_else(name: str, data: st.DataObject) -> None:
    content = bytearray(VARIANTS[name])
    del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for validate in ("headers", "structure", "decode"):
        try:
            stored = store_image(bytes(content), Steps(None, validate, for_ffcv=True), histogram=False)  # type: ignore[arg-type]
        except RejectedImage as error:
            assert not re.search("0x[0-9a-f]{5}", str(error)), "an address"
        else:
            assert stored.height > 0 and stored.width > 0


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_garbage_is_rejected(content: bytes) -> None:
    for start in (b"", b"\xff\xd8", b"\xff\xd8\xff\xc0"):
        with pytest.raises(RejectedImage):
            store_image(start + content, STRUCTURE, histogram=False)


def reject(content: bytes) -> str:
    with pytest.raises(RejectedSample) as raised:
        check_jpeg(content, header_of(content))
    return str(raised.value)


def test_damage_that_pillow_passes_over_is_rejected() -> None:
    whole = VARIANTS["420"]
    start = header_of(whole).scan
    cut = whole[: len(whole) // 2] + b"\xff\xd9"
    assert pillow_rgb(cut).shape == (*SIZE[::-1], 3)
    assert reject(cut) == "damaged JPEG data: Corrupt JPEG data: premature end of data segment"
    twice = whole[: start + 400] + whole[start + 100 :]
    pillow_rgb(twice)
    assert re.search("extraneous bytes before marker 0xd9|bad Huffman code", reject(twice))
    restarts = VARIANTS["restarts"]
    first = re.search(rb"\xff[\xd0-\xd7]", restarts[header_of(restarts).scan :])
    assert first is not None
    position = header_of(restarts).scan + first.start()
    lost = restarts[:position] + restarts[position + 2 :]
    pillow_rgb(lost)
    assert reject(lost).startswith("damaged JPEG data: Corrupt JPEG data")


def test_a_progressive_file_without_its_last_scans_is_rejected() -> None:
    content = VARIANTS["progressive"]
    assert "Premature end of JPEG file" in reject(content[: content.rfind(b"\xff\xda")])


def variant(content: bytes, kind: str) -> bytes:
    """The same coded pixels in a file that libjpeg warns about."""
    header = header_of(content)
    match kind:
        case "zeros before the end":
            return content[:-2] + bytes(7) + content[-2:]
        case "JFIF version 3":
            position = content.index(b"JFIF\0") + 5
            return content[:position] + b"\x03" + content[position + 1 :]
        case "scan parameters 0":
            length = int.from_bytes(content[header.scan + 2 : header.scan + 4])
            end = header.scan + 2 + length
            return content[: end - 3] + bytes(3) + content[end:]
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["zeros before the end", "JFIF version 3", "scan parameters 0"])
def test_harmless_warnings_pass_but_hide_no_damage(kind: str) -> None:
    content = variant(VARIANTS["420"], kind)
    stored = store_image(content, STRUCTURE, histogram=True)
    assert stored.file == content
    np.testing.assert_array_equal(decode_jpeg(content, header_of(content)), pillow_rgb(VARIANTS["420"]))
    start = header_of(content).scan
    reject(content[: start + 300] + content[start + 900 :])


def test_a_missing_end_marker_rejects_as_pillow_does() -> None:
    content = VARIANTS["420"][:-2]
    with pytest.raises(OSError, match="truncated"):
        pillow_rgb(content)
    assert "Premature end of JPEG file" in reject(content)


def test_non_zero_bytes_before_the_end_are_damage() -> None:
    content = VARIANTS["420"]
    assert "extraneous bytes before marker 0xd9" in reject(content[:-2] + b"abcdef" + content[-2:])


@pytest.mark.parametrize(
    "change",
    [
        (b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),  # 12 bits
        (b"\xff\xc0", b"\xff\xc9"),  # arithmetic coding
        (b"\xff\xc0", b"\xff\xc3"),  # lossless
        (b"\xff\xdb", b"junk\xff\xdb"),
    ],
)
def test_unusual_files_are_left_to_pillow(change: tuple[bytes, bytes]) -> None:
    assert parse_header(VARIANTS["420"].replace(*change, 1)) is None


def test_decoding_at_a_smaller_scale_keeps_enough_pixels() -> None:
    content = encode(noise=9)
    header = header_of(content)
    for at_least, expected in [
        ((64, 96), (64, 96)),
        ((33, 10), (64, 96)),
        ((32, 48), (32, 48)),
        ((1, 1), (8, 12)),
    ]:
        assert decode_jpeg(content, header, at_least=at_least).shape == (*expected, 3)
