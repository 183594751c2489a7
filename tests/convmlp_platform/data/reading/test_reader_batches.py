"""Whole micro-batches: the same from both formats and from any number of readers; decoding; annotations and keys."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from PIL import Image
from reader_helpers import FORMATS, SAMPLES, loader, open_split, photos

from convmlp_platform.data.dataset import split
from convmlp_platform.data.dataset.split import decode
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.errors import DataError
from data_prep.images import jpeg_box
from data_prep.images.jpeg_box import header_for_boxes


def batches(folder: Path, format: str, num_workers: int = 0) -> list[MicroBatch]:
    source = open_split(folder, format)
    return [micro for micros in loader(source, num_workers=num_workers).steps(1, 8) for micro in micros]


def assert_same(found: list[MicroBatch], wanted: list[MicroBatch], *, checksums: bool) -> None:
    names = ["images", "labels", "sample_ids", "epochs", "replaced"] + ["checksums"] * checksums
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.number == theirs.number
        for name in names:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_both_formats_give_the_same_pixels(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    assert_same(batches(folder, "ffcv"), batches(folder, "webdataset"), checksums=False)


def test_boxes_decoded_alone_give_the_batches_of_whole_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path)
    kinds = [bool(header_for_boxes(bytes(open_split(folder).payload(at).content))) for at in range(SAMPLES)]
    assert sum(kinds) == SAMPLES * 4 // 5, "JPEGs"
    alone = batches(folder, "webdataset")
    monkeypatch.setattr(jpeg_box, "_compiled", lambda: (None, "a test"))
    assert_same(alone, batches(folder, "webdataset"), checksums=True)
    monkeypatch.setattr(split, "header_for_boxes", lambda _content: None)
    assert_same(alone, batches(folder, "webdataset"), checksums=True)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_readers_gives_the_same_batches(tmp_path: Path, format: str, num_workers: int) -> None:
    folder = photos(tmp_path)
    assert_same(batches(folder, format, num_workers), batches(folder, format), checksums=True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_batch_is_uint8_channels_last_and_says_what_was_read(tmp_path: Path, format: str) -> None:
    folder = photos(tmp_path)
    source = open_split(folder, format)
    for micro in batches(folder, format):
        assert micro.images.dtype == torch.uint8
        assert micro.images.is_contiguous(memory_format=torch.channels_last)
        for at, sample in enumerate(micro.sample_ids.tolist()):
            payload = source.payload(sample)
            assert micro.labels[at] == payload.label == source.label(sample)
            found = int(micro.checksums[at]) & 0xFFFFFFFFFFFFFFFF
            assert found == payload.checksum == xxhash.xxh3_64_intdigest(payload.content)


def test_samples_by_number(tmp_path: Path) -> None:
    source = open_split(photos(tmp_path))
    assert len(source) == SAMPLES
    assert len({source.key(sample) for sample in range(SAMPLES)}) == SAMPLES
    image, label = source.image(0)
    assert (image.mode, label) == ("RGB", source.label(0))
    with pytest.raises(IndexError):
        source.key(SAMPLES)
    with pytest.raises(IndexError):
        source.payload(-1)
    with pytest.raises(DataError, match="has no annotation"):
        source.annotation(0)


def encoded(mode: str, format: str = "JPEG", **options: object) -> bytes:
    pixels = np.random.default_rng(1).integers(60, 200, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


CASES = {
    "4:4:4": encoded("RGB", subsampling=0),
    "4:2:2": encoded("RGB", subsampling=1),
    "4:2:0": encoded("RGB", subsampling=2),
    "progressive": encoded("RGB", progressive=True),
    "grey": encoded("L"),
    "CMYK": encoded("CMYK"),
    "PNG": encoded("RGB", "PNG"),
    "PNG with palette": encoded("P", "PNG"),
    "WebP": encoded("RGB", "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", CASES)
def test_exact_decoding_is_pillows(kind: str) -> None:
    expected = np.asarray(Image.open(io.BytesIO(CASES[kind])).convert("RGB"))
    assert np.array_equal(decode(CASES[kind]), expected)


@pytest.mark.parametrize("kind", CASES)
def test_fast_decoding_is_close_and_not_smaller_than_asked(kind: str) -> None:
    exact = decode(CASES[kind]).astype(int)
    fast = decode(CASES[kind], (150, 200))
    assert fast.shape == exact.shape
    assert np.abs(fast - exact).mean() < 2
    for smallest in ((70, 90), (30, 40)):
        small = decode(CASES[kind], smallest)
        assert small.shape[0] >= smallest[0] and small.shape[1] >= smallest[1]
        resized = Image.fromarray(exact.astype(np.uint8)).resize(small.shape[1::-1], Image.Resampling.BOX)
        assert np.abs(small - np.asarray(resized).astype(int)).mean() < 4


def test_a_cut_jpeg_is_not_decoded() -> None:
    content = CASES["4:2:0"]
    with pytest.raises(OSError, match="truncated"):
        decode(content[: len(content) // 2])
    with pytest.raises((OSError, ValueError)):
        decode(content[:30])
