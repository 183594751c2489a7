"""A small dataset in both formats, of every kind of payload: JPEGs that pass through, and PNGs, raw pixels in FFCV."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

from convmlp.transforms.image_transforms import train_transform
from convmlp_platform.data.dataset.damage import Quarantine
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading.loader import TrainLoader
from convmlp_platform.data.sample_order import SampleOrder
from data_prep.config import ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FORMATS = ("webdataset", "ffcv")
SAMPLES, PER_SHARD = 30, 8


@cache
def _photos() -> Path:
    folder = Path(mkdtemp(prefix="convmlp-test-"))
    draw = np.random.default_rng(5)
    for number in range(SAMPLES):
        coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        image = coarse.resize((60 + number, 50), Image.Resampling.BICUBIC)
        suffix = "png" if number % 5 == 4 else "jpg"
        path = folder / "images" / f"class{number % 3}" / f"{number:02}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.convert("L" if number == 3 else "RGB").save(path)
    output = OutputConfig(path=folder / "photos", samples_per_shard=PER_SHARD)
    source = ImageFolderSource(path=folder / "images", val_fraction=0.0)
    prepare(PrepareConfig(source=source, output=output), progress=lambda _line: None)
    return folder / "photos"


def photos(folder: Path) -> Path:
    """A copy of the dataset that a test may damage."""
    return shutil.copytree(_photos(), folder / "photos")


def open_split(folder: Path, format: str = "webdataset") -> ShardedSplit:
    return ShardedSplit(folder, open_manifest(str(folder)), "train", format)


def loader(
    source: ShardedSplit,
    *,
    num_workers: int = 0,
    quarantine: Quarantine | None = None,
    twin: ShardedSplit | None = None,
    micro: int = 5,
) -> TrainLoader:
    """Two micro-batches of `micro` a step, one rank."""
    transform = train_transform(24, mean=MEAN, std=STD)
    order = SampleOrder(len(source), num_streams=2, seed=3, block=4, window=8)
    return TrainLoader(
        source,
        transform,
        order,
        2 * micro,
        micro,
        0,
        1,
        num_workers,
        quarantine=quarantine,
        twin=None if twin is None else lambda: twin,
    )


def damage(source: ShardedSplit, sample: int) -> None:
    """Flip a bit in the middle of the sample's payload."""
    number, position = source.locate(sample)
    index = source.index(number)
    place = int(index.offset[position] + index.length[position] // 2)
    with (Path(source.folder) / source.shards[number].file).open("r+b") as file:
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 4]))
