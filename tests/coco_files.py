"""A small made-up COCO folder, and scoring with pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from prep_helpers import image_bytes, smooth_image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data_prep.annotations.annotations import Detection

CATEGORIES = [
    {"supercategory": "thing", "id": 90, "name": "toothbrush"},
    {"supercategory": "thing", "id": 1, "name": "person"},
    {"supercategory": "thing", "id": 13, "name": "stop sign"},
]
SIZE = (64, 48)


def runs_of_box(left: int, top: int, width: int, height: int) -> dict[str, Any]:
    """Uncompressed run lengths of a rectangle, column by column as COCO has them."""
    pixels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    pixels[top : top + height, left : left + width] = 1
    flat = np.concatenate([[0], pixels.T.ravel(), [1 - pixels[-1, -1]]])
    changes = np.flatnonzero(np.diff(flat))
    return {"size": [SIZE[1], SIZE[0]], "counts": np.diff([0, *changes]).tolist()}


def made_up_document(split: str, count: int) -> dict[str, Any]:
    """`count` images, the third without annotations, every other one with a crowd."""
    rng = np.random.default_rng(count)
    images, annotations = [], []
    for i in range(count):
        number = 1000 * count + 7 * i
        name = "zweite Ebene/größe.jpg" if i == 1 else f"{number:012d}.jpg"
        images.append({"license": i, "file_name": name, "height": SIZE[1], "width": SIZE[0], "id": number})
        for k in range(0 if i == 2 else 1 + i % 4):
            left, top = (int(v) for v in rng.integers(0, 30, 2))
            wide, high = (int(v) for v in rng.integers(6, 18, 2))
            crowd = k == 0 and i % 2 == 1
            right, bottom = left + wide + 0.25, top + high + 0.5
            annotations.append(
                {
                    "segmentation": runs_of_box(left, top, wide, high)
                    if crowd
                    else [[left, top, right, top, right, bottom, left, bottom]],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(crowd),
                    "image_id": number,
                    "bbox": [left, top, right - left, bottom - top],
                    "category_id": CATEGORIES[k % 3]["id"],
                    "id": 900_000_000_000 + 100 * number + k,
                }
            )
    order = rng.permutation(len(annotations))
    return {
        "info": {"description": f"made up {split} 🙂", "year": 2017},
        "licenses": [],
        "images": images,
        "annotations": [annotations[i] for i in order],
        "categories": copy.deepcopy(CATEGORIES),
    }


def write_document(root: Path, folder: str, document: dict[str, Any]) -> Path:
    path = root / "annotations" / f"instances_{folder}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False))
    return path


def make_coco(root: Path, train: int = 9, val: int = 4) -> Path:
    for folder, count in (("train2017", train), ("val2017", val)):
        document = made_up_document(folder, count)
        write_document(root, folder, document)
        for i, image in enumerate(document["images"]):
            path = root / folder / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(smooth_image(i, SIZE)))
    return root


def average_precision(document: dict[str, Any], results: list[Detection]) -> dict[str, float]:
    """AP of stored objects, as results with score 1, against a document; crowds are ground truth only."""
    scores = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)  # pycocotools changes segmentations in place
        truth.createIndex()
        for kind in ("bbox", "segm"):
            found = truth.loadRes([_result(image, i, kind) for image in results for i in _countable(image)])
            evaluation = COCOeval(truth, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            scores[kind] = float(evaluation.stats[0])
    return scores


def _countable(image: Detection) -> list[int]:
    return np.flatnonzero(~image.is_crowd).tolist()


def _result(image: Detection, i: int, kind: str) -> dict[str, Any]:
    value = image.boxes[i].tolist() if kind == "bbox" else image.rle(i)
    name = "bbox" if kind == "bbox" else "segmentation"
    return {
        "image_id": image.image_id,
        "category_id": image.objects[i]["category_id"],
        name: value,
        "score": 1.0,
    }
