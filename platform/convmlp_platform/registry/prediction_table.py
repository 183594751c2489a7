"""Predictions as the columns of a table, as versions of before `model_script` return them.

Their scripts import it from here, in a process that has imported our packages before it loads one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from convmlp_platform.models.prediction import Detections, LabelMap, Labels, Prediction

_SIZE = {"height": "long", "width": "long"}
COLUMNS: dict[str, dict[str, str]] = {
    "classification": {"label": "string", "probability": "double", "top5": "string"},
    "detection": {"objects": "string", **_SIZE},
    "segmentation": {"label_map": "binary", "shares": "string", **_SIZE},
}
"""Kind of task → column → MLflow's type.

classification: `top5` is a JSON list of {"label", "probability"}, best first. detection: `objects` is a JSON list with
the keys of COCO's results (`Detections.as_coco`), best first. segmentation: `label_map` is a grey PNG file whose values
are class numbers from 0, `shares` a JSON object of class → share of the pixels. `height` and `width` are the image's.
"""


def columns_of(predictions: Sequence[Prediction], kind: str) -> dict[str, list[Any]]:
    """The columns of `COLUMNS[kind]`, a row for each prediction."""
    rows = [_ROWS[kind](one) for one in predictions]
    return {name: [row[name] for row in rows] for name in COLUMNS[kind]}


def _classes(one: Labels) -> dict[str, Any]:
    ranked = one.top(5)
    top5 = [{"label": name, "probability": probability} for name, probability in ranked]
    return {"label": ranked[0][0], "probability": ranked[0][1], "top5": json.dumps(top5)}


def _objects(one: Detections) -> dict[str, Any]:
    return {"objects": json.dumps(one.as_coco()), "height": one.size[0], "width": one.size[1]}


def _pixels(one: LabelMap) -> dict[str, Any]:
    shares = json.dumps(one.shares())
    return {"label_map": one.as_png(), "shares": shares, "height": one.size[0], "width": one.size[1]}


_ROWS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "classification": _classes,
    "detection": _objects,
    "segmentation": _pixels,
}
