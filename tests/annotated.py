"""Small prepared datasets of detection and segmentation, in both formats, for tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from PIL import Image

from data_prep.config import Ade20kSource, CocoSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare

CLASS_IDS = [3, 17, 90]
IMAGES = 6
_COLORS = [(230, 40, 40), (40, 230, 40), (40, 40, 230)]


@cache
def rectangles() -> Path:
    """Coloured rectangles, the colour telling the class: image 4 has none, image 5 has a crowd and an object without
    area. Sizes differ."""
    folder = Path(mkdtemp(prefix="convmlp-test-"))
    draw = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(IMAGES):
        width, height = 90 + 6 * number, 70
        pixels = np.full((height, width, 3), 120, np.uint8)
        for place in range(0 if number == 4 else 2):
            label, wide, high = int(draw.integers(3)), int(draw.integers(25, 40)), int(draw.integers(25, 60))
            left = place * width // 2 + int(draw.integers(0, 4))
            top = int(draw.integers(0, height - high))
            pixels[top : top + high, left : left + wide] = _COLORS[label]
            annotations.append(_object(number, place, label, [left, top, wide, high]))
        if number == 5:
            runs = {"size": [height, width], "counts": [0, height * width]}
            crowd = _object(number, 2, 0, [0, 0, width, height])
            annotations.append(crowd | {"iscrowd": 1, "segmentation": runs})
            annotations.append(_object(number, 3, 1, [5, 5, 0, 10]))
        name = f"{number:03}.png"
        (folder / "source/train2017").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "source/train2017" / name)
        images.append({"id": 1000 + number, "file_name": name, "height": height, "width": width})
    document: dict[str, Any] = {"images": images, "annotations": annotations}
    document["categories"] = [{"id": number, "name": f"color {number}"} for number in CLASS_IDS]
    (folder / "source/annotations").mkdir()
    (folder / "source/annotations/instances_train2017.json").write_text(json.dumps(document))
    return _prepared(folder, CocoSource(path=folder / "source", splits={"train": "train2017"}))


def _object(image: int, place: int, label: int, box: list[int]) -> dict[str, Any]:
    left, top, wide, high = box
    right, bottom = left + wide, top + high
    return {
        "id": 10 * image + place + 1,
        "image_id": 1000 + image,
        "category_id": CLASS_IDS[label],
        "bbox": box,
        "area": wide * high,
        "iscrowd": 0,
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
    }


@cache
def stripes() -> Path:
    """Images of three coloured stripes with their masks: values 1, 2, 3, and 0 (ignored) in the first row."""
    folder = Path(mkdtemp(prefix="convmlp-test-"))
    for kind in ("images", "annotations"):
        (folder / "source" / kind / "training").mkdir(parents=True)
    for number in range(IMAGES):
        width, height = 90 + 6 * number, 70
        mask = np.zeros((height, width), np.uint8)
        for value in (1, 2, 3):
            mask[:, (value - 1) * width // 3 : value * width // 3] = 1 + (value + number) % 3
        pixels = np.array(_COLORS, np.uint8)[mask - 1]
        mask[0] = 0
        Image.fromarray(pixels).save(folder / f"source/images/training/{number:03}.png")
        Image.fromarray(mask).save(folder / f"source/annotations/training/{number:03}.png")
    table = ["Idx\tName", *(f"{number}\tcolor {number}" for number in (1, 2, 3))]
    (folder / "source/objectInfo3.txt").write_text("\n".join(table) + "\n")
    return _prepared(folder, Ade20kSource(path=folder / "source", splits={"train": "training"}))


def _prepared(folder: Path, source: Any) -> Path:
    output = OutputConfig(path=folder / "data", samples_per_shard=4)
    config = PrepareConfig(source=source, output=output, max_unusable_objects=0.1)
    prepare(config, progress=lambda _line: None)
    return folder / "data"
