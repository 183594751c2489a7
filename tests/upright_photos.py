"""Small squares, some of them photos held on their side: JPEGs with an EXIF orientation, and PNGs, in both formats."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

from data_prep.config import ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare

SIDE, SAMPLES = 48, 12
_ORIENTATION = 0x0112


@cache
def upright_photos() -> Path:
    """Each class has images of every orientation from 1 to 6; every fourth image is a PNG without one."""
    folder = Path(mkdtemp(prefix="convmlp-test-"))
    draw = np.random.default_rng(3)
    for number in range(SAMPLES):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        image = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        path = folder / "source/train" / f"class{number % 2}" / f"{number:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 4 == 3:
            image.save(path.with_suffix(".png"))
            continue
        exif = Image.Exif()
        exif[_ORIENTATION] = 1 + number // 2
        image.save(path.with_suffix(".jpg"), quality=95, subsampling=0, exif=exif)
    source = ImageFolderSource(path=folder / "source", splits={"train": "train"})
    output = OutputConfig(path=folder / "photos", samples_per_shard=5)
    prepare(PrepareConfig(source=source, output=output), progress=lambda _line: None)
    return folder / "photos"
