"""COCO's figures: pycocotools' own, over class ids with gaps, crowds and images without objects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shapes import CLASS_IDS, pictures
from torch import Tensor

from convmlp.tasks.coco_metrics import CocoMetrics


def perfect(targets: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": t["boxes"],
            "labels": t["labels"],
            "masks": t["masks"],
            "scores": torch.ones(len(t["labels"])),
        }
        for t in targets
    ]


def test_perfect_predictions_have_ap_1() -> None:
    _, targets = pictures(1, 2, 3, 4)
    metrics = CocoMetrics(CLASS_IDS, masks=True)
    metrics.update(perfect(targets[:3]), targets[:3])
    metrics.update(perfect(targets[3:]), targets[3:])
    scores = metrics.compute()
    assert (
        scores["box_ap"]
        == scores["mask_ap"]
        == scores["box_ap75"]
        == scores["box_ar100"]
        == pytest.approx(1.0)
    )
    assert "box_ap_large" not in scores  # there is no object of 96 x 96 pixels
    present = {CLASS_IDS[label] for t in targets for label in t["labels"].tolist()}
    assert metrics.class_ap["box"] == metrics.class_ap["mask"] == pytest.approx(dict.fromkeys(present, 1.0))
    metrics.reset()
    assert metrics.compute() == {"box_ap": 0.0, "mask_ap": 0.0}


def test_wrong_classes_and_missed_objects_cost() -> None:
    _, targets = pictures(1, 2)
    found = perfect(targets)
    found[0]["labels"] = (found[0]["labels"] + 1) % 3
    metrics = CocoMetrics(CLASS_IDS)
    metrics.update(found, targets)
    assert 0 <= metrics.compute()["box_ap"] < 0.8
    nothing = [{name: value[:0] for name, value in one.items()} for one in perfect(targets)]
    metrics = CocoMetrics(CLASS_IDS, masks=True)
    metrics.update(nothing, targets)
    scores = metrics.compute()
    assert scores["box_ap"] == scores["mask_ap"] == 0.0


def test_crowds_are_no_objects_to_be_found_and_cost_nothing() -> None:
    _, targets = pictures(1, 2)
    crowd = targets[0]["objects"][0] | {"iscrowd": 1, "id": 7, "bbox": [0, 0, 96, 72], "area": 96 * 72.0}
    crowd["segmentation"] = {"size": list(targets[0]["size"]), "counts": [0, 72 * 96]}
    found = perfect(targets)
    extra = {
        "boxes": torch.tensor([[1.0, 1, 20, 20]]),
        "labels": found[0]["labels"][:1],
        "scores": torch.tensor([2.0]),
    }
    found[0] = {name: torch.cat([found[0][name], extra[name]]) for name in extra}
    plain, crowded = CocoMetrics(CLASS_IDS), CocoMetrics(CLASS_IDS)
    plain.update(found, targets)
    targets[0]["objects"].append(crowd)
    crowded.update(found, targets)
    assert crowded.compute()["box_ap"] == pytest.approx(1.0)
    assert plain.compute()["box_ap"] < 1.0
