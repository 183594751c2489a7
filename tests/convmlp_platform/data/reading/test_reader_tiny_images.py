"""Images of a single pixel are images: every task reads them, in training and evaluation, from both formats."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convmlp.transforms.image_transforms import eval_transform, train_transform
from convmlp.transforms.label_map_transforms import SegmentationEvalTransform, SegmentationTrainTransform
from convmlp.transforms.object_transforms import DetectionTrainTransform, DetectionTransform
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading.loader import EvalLoader, TrainLoader
from convmlp_platform.data.sample_order import SampleOrder
from data_prep.config import Ade20kSource, CocoSource, ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare

SIZES = [(1, 1), (1, 1), (1, 9), (9, 1)]
HALF = (0.5, 0.5, 0.5)


def write_image(path: Path, size: tuple[int, int], kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(buffer, kind)
    path.write_bytes(buffer.getvalue())


def classified(root: Path) -> Any:
    for number, size in enumerate(SIZES):
        kind = ("PNG", "JPEG")[number % 2]
        for split in ("train", "val"):
            write_image(root / split / f"class_{number % 2}" / f"{number}.{kind.lower()}", size, kind)
    return ImageFolderSource(path=root)


def with_boxes(root: Path) -> Any:
    images, objects = [], []
    for number, (height, width) in enumerate(SIZES):
        write_image(root / "train2017" / f"{number}.jpg", (height, width), "JPEG")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        polygon = [0, 0, width, 0, width, height, 0, height]
        fields = {
            "bbox": [0, 0, width, height],
            "area": width * height,
            "segmentation": [polygon],
            "iscrowd": 0,
        }
        objects.append({"id": number + 1, "image_id": number, "category_id": 1, **fields})
    document = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(document))
    return CocoSource(path=root, splits={"train": "train2017"})


def with_masks(root: Path) -> Any:
    for number, size in enumerate(SIZES):
        write_image(root / "images" / "training" / f"{number}.jpg", size, "JPEG")
        mask = root / "annotations" / "training" / f"{number}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(size, 1, np.uint8)).save(mask)
    (root / "objectInfo1.txt").write_text("Idx\tName\n1\tthing\n")
    return Ade20kSource(path=root, splits={"train": "training"})


@pytest.mark.parametrize(
    ("source", "transforms"),
    [
        (
            classified,
            (train_transform(32, mean=HALF, std=HALF), eval_transform(32, mean=HALF, std=HALF)),
        ),
        (
            with_boxes,
            (DetectionTrainTransform((64,), 160, masks=True), DetectionTransform((64,), 160, masks=True)),
        ),
        (
            with_masks,
            (
                SegmentationTrainTransform(32, mean=HALF, short_side=32, max_side=64),
                SegmentationEvalTransform(32, 64),
            ),
        ),
    ],
)
def test_single_pixels_are_read(
    tmp_path: Path, source: Callable[[Path], Any], transforms: tuple[Any, Any]
) -> None:
    output = OutputConfig(path=tmp_path / "data")
    (tmp_path / "source").mkdir()
    config = PrepareConfig(source=source(tmp_path / "source"), output=output)
    manifest = prepare(config, progress=lambda _line: None)
    assert manifest.splits["train"].num_samples == len(SIZES)
    for stored in manifest.formats:
        split = ShardedSplit(tmp_path / "data", open_manifest(str(tmp_path / "data")), "train", stored)
        order = SampleOrder(len(split), num_streams=1, seed=1, block=2, window=4)
        for micros in TrainLoader(split, transforms[0], order, 4, 4, 0, 1, 0).steps(0, 3):
            assert len(micros[0].images) == 4
        (held_out,) = EvalLoader(split, transforms[1], 4, 0, 1, 0)
        for image, target in zip(held_out.images, held_out.targets, strict=True):
            assert min(image.shape[-2:]) >= 1
            if isinstance(target, dict):
                assert target["boxes"].shape == (1, 4)
                assert (target["boxes"][0, :2] == 0).all()
