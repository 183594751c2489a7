"""COCO's average precision and recall, by pycocotools, over the images of all ranks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from pycocotools import mask as runs
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

_NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
"""Of pycocotools' summary, in its order."""
_KINDS = {"bbox": "box", "segm": "mask"}

_Annotation = dict[str, Any]


class CocoMetrics:
    """`box_ap`, `box_ap50`, ... and, with masks, `mask_ap`, ...: COCO's twelve figures each, fractions in [0, 1].

    Truth is what was published of the images: areas, crowds and run lengths included. A figure for which there is no
    object (`ap_small` without small ones) is left out; `ap` is 0 then.

    Args:
        class_ids: category ids by label.
        masks: evaluate masks, too.
    """

    def __init__(self, class_ids: Sequence[int], *, masks: bool = False) -> None:
        self.class_ids = list(class_ids)
        self.kinds = ("bbox", "segm") if masks else ("bbox",)
        self.class_ap: dict[str, dict[int, float]] = {}
        """On rank 0, after `compute`: `box` (and `mask`) → category id → AP, of classes that have objects."""
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: list[_Annotation] = []
        self._truth: list[_Annotation] = []
        self._found: list[_Annotation] = []

    def to(self, device: torch.device) -> Self:
        """Nothing to move: what is detected is kept on the CPU, masks as run lengths."""
        return self

    def update(self, outputs: list[dict[str, Tensor]], targets: list[dict[str, Any]]) -> None:
        """Take in images.

        Args:
            outputs: by image `boxes` [k, 4] left, top, right, bottom in published pixels, `scores` [k], `labels`
                [k], and with masks `masks` [k, height, width] bool.
            targets: by image `image_id`, `size` (height, width) and `objects`, all as published.
        """
        for found, target in zip(outputs, targets, strict=True):
            number = int(target["image_id"])
            height, width = (int(side) for side in target["size"])
            self._images.append({"id": number, "height": height, "width": width})
            self._truth += [item | {"image_id": number} for item in target["objects"]]
            self._found += self._results(number, found)

    def compute(self) -> dict[str, float]:
        """The figures over all ranks' images (collective); rank 0 evaluates."""
        gathered = _gather((self._images, self._truth, self._found))
        scores: dict[str, float] = {}
        if gathered is not None:
            images, truth, found = (
                [item for part in parts for item in part] for parts in zip(*gathered, strict=True)
            )
            for kind in self.kinds:
                scores |= self._evaluate(kind, images, truth, found)
        return _from_main(scores)

    def _results(self, number: int, found: dict[str, Tensor]) -> list[_Annotation]:
        corners = found["boxes"].double().cpu()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        scores, labels = found["scores"].double().cpu().tolist(), found["labels"].cpu().tolist()
        results = [
            {
                "image_id": number,
                "category_id": self.class_ids[label],
                "bbox": box,
                "score": score,
                "iscrowd": 0,
            }
            for box, score, label in zip(boxes.tolist(), scores, labels, strict=True)
        ]
        if "segm" in self.kinds:
            masks = found["masks"].to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            for result, encoded in zip(results, runs.encode(np.asfortranarray(masks)), strict=True):
                result["segmentation"] = encoded
        return results

    def _evaluate(
        self, kind: str, images: list[_Annotation], truth: list[_Annotation], found: list[_Annotation]
    ) -> dict[str, float]:
        """pycocotools' evaluation of boxes or masks; its report goes nowhere."""
        evaluation = self._matched(kind, images, truth, found)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
            evaluation.summarize()
        name = _KINDS[kind]
        precision = evaluation.eval["precision"][:, :, :, 0, -1].reshape(-1, len(self.class_ids))
        self.class_ap[name] = {
            number: float(values.mean())
            for number, values in zip(sorted(self.class_ids), precision.T, strict=True)
            if (values > -1).all()
        }
        scores = {f"{name}_{figure}": float(v) for figure, v in zip(_NAMES, evaluation.stats, strict=True)}
        return {f"{name}_ap": 0.0} | {figure: value for figure, value in scores.items() if value >= 0}

    def matches(self, kind: str) -> list[dict[str, Any]]:
        """pycocotools' record of each image and class that has objects, true or found, of this process's images and of
        all sizes: image_id, category_id, dtScores [found], dtMatches and dtIgnore [10 IoU thresholds, found],
        gtIgnore [true].

        Args:
            kind: `bbox` or `segm`.
        """
        evaluation = self._matched(kind, self._images, self._truth, self._found)
        every = list(evaluation.params.areaRng[0])
        return [one for one in evaluation.evalImgs if one is not None and list(one["aRng"]) == every]

    def _matched(
        self, kind: str, images: list[_Annotation], truth: list[_Annotation], found: list[_Annotation]
    ) -> COCOeval:
        if kind == "segm":
            truth = [item for item in truth if item.get("segmentation")]
            areas = [float(runs.area(item["segmentation"])) for item in found]
        else:
            areas = [item["bbox"][2] * item["bbox"][3] for item in found]
        found = [item | {"area": area} for item, area in zip(found, areas, strict=True)]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._coco(images, truth), self._coco(images, found), kind)
            evaluation.evaluate()
        return evaluation

    def _coco(self, images: list[_Annotation], annotations: list[_Annotation]) -> COCO:
        """As pycocotools would have read it of a file. Ids are new: pycocotools takes a match with id 0 for none."""
        coco = COCO()
        coco.dataset = {
            "images": images,
            "categories": [{"id": number} for number in self.class_ids],
            "annotations": [item | {"id": number} for number, item in enumerate(annotations, 1)],
        }
        coco.createIndex()
        return coco


def _gather(value: Any) -> list[Any] | None:
    """Every rank's value on rank 0, None on the others."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered


def _from_main(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
