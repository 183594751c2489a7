"""One flipped bit anywhere in a dataset: reading says so, or gives exactly what was stored; nothing is passed on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from reader_helpers import FORMATS, loader, open_split, photos

from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.errors import DataError

Stored = list[tuple[str, bytes, int, int, int, int]]


def files_by_kind(folder: Path) -> dict[str, list[Path]]:
    kinds = {
        "tar": "*/*.tar",
        "beton": "*/*.beton",
        "index": "*/*.arrow",
        "manifest": "manifest.json",
    }
    return {kind: sorted(folder.glob(pattern)) for kind, pattern in kinds.items()}


@contextmanager
def flipped(file: Path, bit: int) -> Iterator[None]:
    def flip() -> None:
        with file.open("r+b") as opened:
            opened.seek(bit // 8)
            (value,) = opened.read(1)
            opened.seek(bit // 8)
            opened.write(bytes([value ^ 1 << bit % 8]))

    flip()
    try:
        yield
    finally:
        flip()


def stored(folder: Path, format: str) -> Stored:
    """All that a reader gets of every sample."""
    source = open_split(folder, format)
    found = []
    for sample in range(len(source)):
        payload = source.payload(sample)
        shape = (payload.encoding, payload.height, payload.width)
        found.append((source.key(sample), bytes(payload.content), payload.label, *shape))
    return found


def flips(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Path, int]]:
    """As many in each kind of file, at random places."""
    draw, kinds = random.Random(seed), files_by_kind(folder)
    assert all(kinds.values())
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        file = draw.choice(kinds[kind])
        yield kind, file, draw.randrange(8 * file.stat().st_size)


def check_flips(folder: Path, count: int, seed: int) -> Counter[tuple[str, bool]]:
    """How many in each kind of file were noticed by reading; those that were not must change nothing."""
    originals = {format: stored(folder, format) for format in FORMATS}
    noticed: Counter[tuple[str, bool]] = Counter()
    for kind, file, bit in flips(folder, count, seed):
        seen = False
        with flipped(file, bit):
            for format in FORMATS:
                try:
                    assert stored(folder, format) == originals[format], f"bit {bit} of {file} was passed on"
                except DataError as error:
                    assert "photos" in str(error)
                    seen = True
        noticed[kind, seen] += 1
    assert all(stored(folder, format) == originals[format] for format in FORMATS)
    return noticed


def test_no_flipped_bit_is_passed_on(tmp_path: Path) -> None:
    noticed = check_flips(photos(tmp_path), 300, seed=0)
    assert not noticed["index", False]
    assert not noticed["manifest", False]
    assert noticed["tar", True] > 15  # the rest lies in headers, padding and labels, which readers don't use
    assert noticed["beton", True] > 15


@pytest.mark.slow
def test_none_of_ten_thousand_flipped_bits_is_passed_on(tmp_path: Path) -> None:
    noticed = check_flips(photos(tmp_path), 10_000, seed=1)
    print(sorted(noticed.items()))
    assert not noticed["index", False]
    assert not noticed["manifest", False]


@pytest.mark.parametrize("format", FORMATS)
def test_no_flipped_bit_reaches_a_batch(tmp_path: Path, format: str) -> None:
    folder = photos(tmp_path)

    def epoch() -> list[MicroBatch]:
        return [micro for micros in loader(open_split(folder, format)).steps(0, 3) for micro in micros]

    originals, refused = epoch(), 0
    for _kind, file, bit in flips(folder, 80, seed=2):
        with flipped(file, bit):
            try:
                found = epoch()
            except DataError:
                refused += 1
                continue
        for ours, wanted in zip(found, originals, strict=True):
            assert torch.equal(ours.images, wanted.images)
            assert torch.equal(ours.labels, wanted.labels)
            assert torch.equal(ours.checksums, wanted.checksums)
    assert refused > 20
