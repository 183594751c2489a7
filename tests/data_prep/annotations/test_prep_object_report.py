"""Boxes outside their image or without area: told object by object, counted in the manifest, and too many fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import SIZE, made_up_document, make_coco, write_document
from hypothesis import given
from hypothesis import strategies as st

from data_prep.annotations.annotations import parse_detection
from data_prep.annotations.detection_checks import oddity, overhang
from data_prep.annotations.object_report import ODD_OBJECTS_NAME, objects_of
from data_prep.config import CocoSource, OutputConfig, PrepareConfig
from data_prep.copy_dataset import copy_dataset
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare

WIDTH, HEIGHT = SIZE


def an_object(box: list[float]) -> dict[str, Any]:
    return {"id": 1, "category_id": 0, "bbox": box, "area": 1.0, "iscrowd": 0}


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([1, 2, 0, 3], "has no area"),
        ([1, 2, 3, -1], "has no area"),
        ([WIDTH, 2, 0.5, 3], "lies outside the image of 64 x 48 pixels"),
        ([-0.75, 2, 0.5, 3], "lies outside"),
        ([900, 2, 5, 3], "lies outside"),
        ([60, 2, 6.5, 3], "reaches 2.5 pixels out of the image of 64 x 48 pixels, more than 1"),
        ([-0.75, 2, 9, 3], None),
        ([10, 40, 3, 8.99], None),
        ([0, 0, WIDTH, HEIGHT], None),
    ],
)
def test_what_is_wrong_with_a_box(box: list[float], reason: str | None) -> None:
    found = oddity(an_object(box), HEIGHT, WIDTH)
    assert found is None if reason is None else reason in str(found)


@given(*(st.floats(-9, 80) for _ in range(2)), *(st.floats(-1, 90) for _ in range(2)))
def test_a_usable_box_has_an_area_within_its_image(left: float, top: float, wide: float, high: float) -> None:
    item = an_object([left, top, wide, high])
    if oddity(item, HEIGHT, WIDTH) is None:
        corners = np.clip([left, top, left + wide, top + high], 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        assert corners[2] > corners[0]
        assert corners[3] > corners[1]
        assert overhang(item, HEIGHT, WIDTH) <= 1


def prepared(root: Path, boxes: dict[int, list[float]], **settings: Any) -> DatasetManifest:
    """Prepare a COCO folder of which the first objects of some images have other boxes; it is made once."""
    if not (root / "coco").exists():
        _make(root / "coco", boxes)
    output = OutputConfig(path=root / "out", samples_per_shard=4)
    config = PrepareConfig(source=CocoSource(path=root / "coco"), output=output, **settings)
    return prepare(config, progress=lambda line: None)


def _make(root: Path, boxes: dict[int, list[float]]) -> None:
    make_coco(root)
    document = made_up_document("train2017", 9)
    first = {item["image_id"]: item for item in reversed(document["annotations"])}
    for image, box in boxes.items():
        first[image] |= {"bbox": box, "iscrowd": 0}
        del first[image]["segmentation"]
    write_document(root, "train2017", document)


ODD = {9000: [70.0, 5.0, 4.0, 4.0], 9007: [3.0, 3.0, 8.0, 0.0], 9021: [-0.5, 3.0, 8.0, 9.0]}


def listed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ODD_OBJECTS_NAME).read_text().splitlines()]


def test_odd_objects_are_listed_and_counted_and_stay_as_published(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, ODD, max_unusable_objects=0.2)
    lines = listed(tmp_path / "out")
    assert [(line["key"], line["training"]) for line in lines] == [
        ("000000009000", "left out"),
        ("000000009021", "cut"),
        ("zweite%20Ebene/gr%C3%B6%C3%9Fe", "left out"),
    ]
    assert [set(line) for line in lines] == [{"split", "key", "annotation", "training", "reason"}] * 3
    assert "lies outside the image" in lines[0]["reason"]
    assert "reaches 0.5 pixels out" in lines[1]["reason"]
    counts = objects_of(manifest)
    assert counts is not None
    assert (counts.left_out, counts.cut, counts.without_mask) == (2, 1, 3)
    documents = made_up_document("train2017", 9), made_up_document("val2017", 4)
    assert counts.total == sum(len(document["annotations"]) for document in documents)
    copy_dataset(str(tmp_path / "out"), str(tmp_path / "copy"), progress=lambda line: None)
    assert listed(tmp_path / "copy") == lines


def test_too_many_unusable_objects_fail_with_the_first_and_nothing_is_done_again(tmp_path: Path) -> None:
    with pytest.raises(DataPrepError) as raised:
        prepared(tmp_path, ODD)
    message = str(raised.value)
    assert "2 of 25 annotated objects can't be used, max_unusable_objects (0.01) allows 0" in message
    assert "image 000000009000 of train, annotation" in message
    assert str(tmp_path / "out" / ODD_OBJECTS_NAME) in message
    assert not (tmp_path / "out" / "manifest.json").exists()
    shards = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.tar")}
    assert shards
    prepared(tmp_path, ODD, max_unusable_objects=0.2)
    assert {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.tar")} == shards


def test_a_dataset_without_objects_has_no_counts() -> None:
    assert parse_detection(
        b'{"file_name":"a","height":1,"image_id":1,"objects":[],"width":1}'
    ).overhangs.shape == (0,)
