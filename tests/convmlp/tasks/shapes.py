"""Pictures of rectangles with their boxes, masks and label maps, for the tests of detection and segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

COLORS = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0], [-1.0, -1.0, 2.0]])
CLASS_IDS = [3, 17, 90]
"""As a publisher may number three classes."""


def picture(seed: int, height: int = 64, width: int = 96, count: int = 2) -> tuple[Tensor, dict[str, Any]]:
    """An image [3, H, W] of coloured rectangles, the colour telling the class, and its target as readers make it."""
    draw = np.random.default_rng(seed)
    image = torch.full((3, height, width), -1.0)
    boxes, labels, masks, objects = [], [], [], []
    for place in range(count):
        wide, high = draw.integers(24, 40, 2).tolist()
        left = (
            int(draw.integers(place * width // count, (place + 1) * width // count - wide + 1))
            if count > 1
            else 0
        )
        top = int(draw.integers(0, height - high + 1))
        label = int(draw.integers(3))
        image[:, top : top + high, left : left + wide] = COLORS[label][:, None, None]
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[top : top + high, left : left + wide] = True
        right, bottom = left + wide, top + high
        boxes.append([float(left), float(top), float(right), float(bottom)])
        labels.append(label)
        masks.append(mask)
        objects.append(
            {
                "id": 100 * seed + place,
                "category_id": CLASS_IDS[label],
                "bbox": [left, top, wide, high],
                "area": wide * high,
                "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }
        )
    target = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
        "image_id": seed,
        "size": (height, width),
        "objects": objects,
    }
    return image, target


def pictures(*seeds: int) -> tuple[list[Tensor], list[dict[str, Any]]]:
    images, targets = zip(*(picture(seed, 64 + 8 * (seed % 2)) for seed in seeds), strict=True)
    return list(images), list(targets)


def label_map(target: dict[str, Any]) -> Tensor:
    """Class 0 is the background, rectangles are 1..3, the first row is ignored: uint8 [H, W]."""
    map_ = torch.zeros(target["size"], dtype=torch.uint8)
    for label, mask in zip(target["labels"].tolist(), target["masks"], strict=True):
        map_[mask] = label + 1
    map_[0] = 255
    return map_
