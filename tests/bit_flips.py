"""Single flipped bits in the files of a dataset, each undone again: what a bad disk, cable or memory does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def files_by_kind(dataset: Path) -> dict[str, list[Path]]:
    """The files of a prepared dataset by what they are: manifest, index, tar, beton."""
    kinds = {"manifest": "manifest.json", "index": "*/*.index.arrow", "tar": "*/*.tar", "beton": "*/*.beton"}
    return {kind: sorted(dataset.glob(pattern)) for kind, pattern in kinds.items()}


def random_positions(files: list[Path], count: int, seed: int) -> list[tuple[Path, int]]:
    """`count` times a file and the number of a bit in it; every byte of all files is as likely as any other."""
    draw = random.Random(seed)
    sizes = [file.stat().st_size for file in files]
    return [(file, draw.randrange(8 * file.stat().st_size)) for file in draw.choices(files, sizes, k=count)]


@contextmanager
def flipped(file: Path, bit: int) -> Iterator[None]:
    """`file` with one bit (counted from the file's start) changed in place, and as it was again afterwards."""
    _flip(file, bit)
    try:
        yield
    finally:
        _flip(file, bit)


def _flip(file: Path, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        (value,) = opened.read(1)
        opened.seek(bit // 8)
        opened.write(bytes([value ^ 1 << bit % 8]))
