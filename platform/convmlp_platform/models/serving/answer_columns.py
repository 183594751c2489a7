"""Predictions as the plain columns of a table: a row for each image, lists where an image has several of something.

Wherever they stand, `class` is a class's number, from 0, in the bundle's order, and `label` its name. `error` says why
an image has no prediction; then the other columns are None, and else `error` is.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from convmlp_platform.errors import DataError
from convmlp_platform.models.prediction import Detections, LabelMap, Labels, Prediction, run_lengths

_NUMBERS, _NAMES, _VALUES = ["long"], ["string"], ["double"]
_SIZE = {"height": "long", "width": "long"}
_OBJECTS: dict[str, Any] = {
    **{
        "boxes": [["double"]],
        "scores": _VALUES,
        "classes": _NUMBERS,
        "labels": _NAMES,
        "category_ids": _NUMBERS,
    },
    **_SIZE,
}
_ERROR = {"error": "string"}
COLUMNS: dict[str, dict[str, Any]] = {
    "classification": {
        **{"class": "long", "label": "string", "probability": "double"},
        **{"top5_classes": _NUMBERS, "top5_labels": _NAMES, "top5_probabilities": _VALUES},
        **_ERROR,
    },
    "retinanet": _OBJECTS | _ERROR,
    "mask_rcnn": _OBJECTS | {"masks": _NAMES} | _ERROR,
    "semantic_fpn": {
        "mask": "string",
        "classes": _NUMBERS,
        "labels": _NAMES,
        "shares": _VALUES,
        **_SIZE,
        **_ERROR,
    },
}
"""Task → column → type, in MLflow's words; [type] is a list of it.

classification: the most probable class, and the five most probable, best first. retinanet, mask_rcnn: objects, best
first; `boxes` left, top, right, bottom in pixels; `category_ids` the dataset's; `masks` COCO's compressed run lengths
(`counts`) of [height, width]. semantic_fpn: `mask` the base64 text of a grey PNG file whose values are classes; the
classes that occur with their shares of the pixels, the largest first. `height` and `width` are the image's.
"""


def columns_of(found: Sequence[Prediction | DataError], task: str) -> dict[str, list[Any]]:
    """The columns of `COLUMNS[task]`, a row for each prediction or error."""
    rows = [{"error": str(one)} if isinstance(one, DataError) else _ROWS[task](one) for one in found]
    return {name: [row.get(name) for row in rows] for name in COLUMNS[task]}


def _classes(one: Labels) -> dict[str, Any]:
    best = one.probabilities.topk(min(5, len(one.classes)))
    numbers, values = best.indices.tolist(), best.values.tolist()
    names = [one.classes[number] for number in numbers]
    return {
        **{"class": numbers[0], "label": names[0], "probability": values[0]},
        **{"top5_classes": numbers, "top5_labels": names, "top5_probabilities": values},
    }


def _objects(one: Detections) -> dict[str, Any]:
    numbers = one.labels.tolist()
    return {
        "boxes": one.boxes.tolist(),
        "scores": one.scores.tolist(),
        "classes": numbers,
        "labels": one.names,
        "category_ids": [one.class_ids[number] for number in numbers],
        "masks": None if one.masks is None else [runs["counts"] for runs in run_lengths(one.masks)],
        "height": one.size[0],
        "width": one.size[1],
    }


def _pixels(one: LabelMap) -> dict[str, Any]:
    shares = one.class_shares()
    return {
        "mask": base64.b64encode(one.as_png()).decode("ascii"),
        "classes": [number for number, _ in shares],
        "labels": [one.classes[number] for number, _ in shares],
        "shares": [share for _, share in shares],
        "height": one.size[0],
        "width": one.size[1],
    }


_ROWS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "classification": _classes,
    "retinanet": _objects,
    "mask_rcnn": _objects,
    "semantic_fpn": _pixels,
}
