"""Small generated sources for the tests of data preparation."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.config import ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.dataset.manifest import DatasetManifest
from data_prep.prepare import prepare


def smooth_image(seed: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """A random image without hard edges, which JPEG decoders agree on; `size` is (width, height)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def image_bytes(image: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def make_folder(root: Path, *, train: int = 11, val: int = 5, classes: int = 3) -> Path:
    """ImageNet's layout with JPEG, greyscale JPEG, CMYK JPEG and PNG files."""
    kinds = [("RGB", "JPEG", "JPEG"), ("L", "JPEG", "jpg"), ("CMYK", "JPEG", "jpeg"), ("RGB", "PNG", "png")]
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            mode, kind, suffix = kinds[i % len(kinds)]
            folder = root / split / f"class_{i % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            image = smooth_image(i + (100 if split == "val" else 0), mode=mode)
            (folder / f"image_{i}.{suffix}").write_bytes(image_bytes(image, kind))
    return root


def folder_job(source: Path, output: Path, **settings: Any) -> PrepareConfig:
    """A job over an image folder; settings of `output` and of the source are told apart by name."""
    layout = {name: settings.pop(name) for name in list(settings) if name in ImageFolderSource.model_fields}
    own = {name: settings.pop(name) for name in list(settings) if name in OutputConfig.model_fields}
    return PrepareConfig(
        source=ImageFolderSource(path=source, **layout),
        output=OutputConfig(path=output, **({"samples_per_shard": 4} | own)),
        **settings,
    )


def prepare_folder(source: Path, output: Path, **settings: Any) -> DatasetManifest:
    return prepare(folder_job(source, output, **settings), progress=lambda line: None)


def rejected_lines(output: Path) -> list[dict[str, str]]:
    """What a dataset's `rejected.jsonl` says."""
    return [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def make_scenes(root: Path, train: int = 5, val: int = 2) -> Path:
    """ADE20K's layout with 3 classes and a mask for every image."""
    rows = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t0\t0\t0\tthing {i}" for i in (1, 2, 3))]
    root.mkdir(parents=True)
    (root / "objectInfo3.txt").write_text("\n".join(rows) + "\n")
    for folder, count in (("training", train), ("validation", val)):
        for i in range(count):
            size = (20 + 3 * i, 16 + i)
            mask = np.random.default_rng(i).integers(0, 4, size[::-1], dtype=np.uint8)
            for kind, suffix, image in (
                ("images", "jpg", smooth_image(i, size)),
                ("annotations", "png", Image.fromarray(mask)),
            ):
                path = root / kind / folder / f"scene_{i}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image_bytes(image, "PNG" if suffix == "png" else "JPEG"))
    return root
