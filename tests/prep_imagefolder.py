"""A small dataset whose source is gone."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.config import ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare


def orphaned_dataset(root: Path, images: int = 6) -> Path:
    """JPEG files of two classes as `train` and `val` in both formats, at `root`/orphan."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(images):
            pixels = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((40, 32))
            buffer = io.BytesIO()
            pixels.save(buffer, "JPEG")
            path = root / "source" / split / f"class_{i % 2}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
    config = PrepareConfig(
        source=ImageFolderSource(path=root / "source"), output=OutputConfig(path=root / "orphan")
    )
    prepare(config, progress=lambda _line: None)
    shutil.rmtree(root / "source")
    return root / "orphan"
