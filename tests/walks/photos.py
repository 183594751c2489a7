"""The files that a user brings along: photographs of their own, one folder a class, and a few images as CIFAR-10.

Of $CONVMLP_TEST_DATA's archives where it names some, else made up.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copyfile

import numpy as np
from PIL import Image

PHOTOS = ("accordion", "dollar_bill", "pagoda", "trilobite")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TIMES = 16
"""So many images of CIFAR-10 for each photograph: those are tiny."""

Target = Callable[[str, int], Path]


def bring(clone: Path, count: int) -> None:
    """Put `photos/`, `some-picture.jpg` and `data/raw/cifar10/` into a clone: `count` photographs of each class, a
    quarter of them to judge by."""
    _fill("caltech101_dev.tar", PHOTOS, count, _target(clone / "photos", "val", count), (96, 128))
    small = TIMES * count
    _fill("cifar10.tar.gz", CIFAR10, small, _target(clone / "data/raw/cifar10", "test", small), (32, 32))
    copyfile(_target(clone / "photos", "val", count)(PHOTOS[0], 0), clone / "some-picture.jpg")


def _target(folder: Path, judged: str, count: int) -> Target:
    def place(name: str, number: int) -> Path:
        split = judged if number < max(count // 4, 1) else "train"
        return folder / split / name / f"image_{number:04d}.jpg"

    return place


def _fill(archive: str, classes: Sequence[str], count: int, target: Target, size: tuple[int, int]) -> None:
    for name in classes:
        for number in (0, count - 1):
            target(name, number).parent.mkdir(parents=True, exist_ok=True)
    source = Path(os.environ.get("CONVMLP_TEST_DATA", "/nowhere")) / archive
    if source.is_file():
        _unpack(source, classes, count, target)
        return
    for label, name in enumerate(classes):
        for number in range(count):
            _stripes(target(name, number), label, number, size)


def _unpack(source: Path, classes: Sequence[str], count: int, target: Target) -> None:
    taken = dict.fromkeys(classes, 0)
    with tarfile.open(source) as tar:
        for member in tar:
            name = Path(member.name).parent.name
            if taken.get(name, count) < count and member.name.endswith((".jpg", ".jpeg")):
                file = tar.extractfile(member)
                assert file is not None
                target(name, taken[name]).write_bytes(file.read())
                taken[name] += 1
            if min(taken.values()) == count:
                return
    raise AssertionError(f"{source} has too few images: {taken}")


def _stripes(path: Path, label: int, seed: int, size: tuple[int, int]) -> None:
    """A picture whose stripes' direction, width and colour are its class."""
    rng = np.random.default_rng(1000 * label + seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    along = rows if label % 2 else columns
    wave = np.sin(along / (1.5 + label // 2) + rng.uniform(0, 6))[..., None] * np.eye(3)[label % 3]
    pixels = np.clip(128 + 80 * wave + rng.normal(0, 20, (*size, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=90)
