"""What predictions say, in plain values."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as runs

from convmlp_platform.models.prediction import Detections, LabelMap, Labels

CLASSES = ("cat", "dog", "owl")


def detections(count: int, masks: bool) -> Detections:
    draw = torch.Generator().manual_seed(count)
    corners = 4.0 + 8.0 * torch.rand(count, 2, generator=draw)
    return Detections(
        CLASSES,
        (3, 17, 90),
        (20, 30),
        torch.cat([corners, corners + 5.0], dim=1),
        torch.rand(count, generator=draw).sort(descending=True).values,
        torch.randint(3, (count,), generator=draw),
        torch.rand(count, 20, 30, generator=draw) > 0.5 if masks else None,
    )


@given(count=st.integers(0, 6), masks=st.booleans(), least=st.floats(0, 1))
def test_objects_as_coco_results(count: int, masks: bool, least: float) -> None:
    found = detections(count, masks).above(least)
    rows: list[dict[str, Any]] = json.loads(json.dumps(found.as_coco()))
    assert len(rows) == len(found) and all(row["score"] >= least for row in rows)
    for place, row in enumerate(rows):
        assert (row["name"], row["category_id"]) == (
            found.names[place],
            {0: 3, 1: 17, 2: 90}[int(found.labels[place])],
        )
        left, top, right, bottom = found.boxes[place].tolist()
        assert row["bbox"] == [left, top, pytest.approx(right - left), pytest.approx(bottom - top)]
        if found.masks is not None:
            assert np.array_equal(runs.decode(row["segmentation"]), found.masks[place].numpy())
        else:
            assert "segmentation" not in row


def test_a_label_map_as_shares_and_as_a_picture() -> None:
    labels = np.array([[2, 2, 2, 2], [0, 0, 0, 2]], np.uint8)
    one = LabelMap(CLASSES, labels)
    assert one.size == (2, 4)
    assert list(one.shares().items()) == [("owl", 5 / 8), ("cat", 3 / 8)]
    with Image.open(io.BytesIO(one.as_png())) as picture:
        assert picture.mode == "L" and np.array_equal(np.asarray(picture), labels)


def test_the_most_probable_classes() -> None:
    one = Labels(CLASSES, torch.tensor([0.2, 0.7, 0.1]))
    assert [name for name, _ in one.top(2)] == ["dog", "cat"]
    assert len(one.top(9)) == 3
