"""Detection annotations keep what is published; contradictions are rejected, oddities kept and marked."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from data_prep.annotations.annotations import (
    completed,
    detection_json,
    expect_same_size,
    fit_mask,
    parse_detection,
    to_coco,
)
from data_prep.errors import RejectedSample
from data_prep.images.masks import check_mask, read_mask, resize_mask

IMAGE: dict[str, Any] = {"id": 7, "file_name": "a/ü.jpg", "height": 6, "width": 8, "license": 3}
CLASS_IDS = [2, 5, 90]


def an_object(**changes: Any) -> dict[str, Any]:
    return {
        "id": 11,
        "image_id": 7,
        "category_id": 5,
        "bbox": [1.5, 1, 3, 2.25],
        "area": 6.75,
        "iscrowd": 0,
        "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]],
        "attributes": {"occluded": True},
    } | changes


def parse(**changes: Any) -> Any:
    return parse_detection(detection_json(IMAGE, [an_object(**changes)]), CLASS_IDS)


def test_the_document_is_canonical_and_complete() -> None:
    content = detection_json(IMAGE, [an_object()])
    assert content == detection_json(IMAGE, [dict(reversed(an_object().items()))])
    assert content.startswith(
        '{"file_name":"a/ü.jpg","height":6,"image_id":7,"objects":[{"area":6.75,'.encode()
    )
    found = parse_detection(content, CLASS_IDS)
    assert (found.image_id, found.file_name, found.height, found.width) == (7, "a/ü.jpg", 6, 8)
    assert found.objects == [{key: value for key, value in an_object().items() if key != "image_id"}]
    assert found.boxes.tolist() == [[1.5, 1, 3, 2.25]] and found.boxes.dtype == np.float64
    assert found.labels.tolist() == [1]
    assert found.areas.tolist() == [6.75]
    assert found.is_crowd.tolist() == [False]
    assert found.usable.tolist() == [True]
    assert parse_detection(content).labels.tolist() == [5]


def test_an_image_without_objects() -> None:
    found = parse_detection(detection_json(IMAGE, []), CLASS_IDS)
    assert found.boxes.shape == (0, 4)
    assert found.labels.shape == found.usable.shape == found.is_crowd.shape == (0,)
    assert to_coco([found], ["a", "b", "c"], CLASS_IDS)["annotations"] == []


finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)


@given(box=st.lists(finite, min_size=4, max_size=4), area=finite, polygon=st.lists(finite, max_size=8))
@settings(max_examples=100, deadline=None)
def test_numbers_keep_their_values(box: list[float], area: float, polygon: list[float]) -> None:
    published = an_object(bbox=box, area=area, segmentation=[polygon[: len(polygon) // 2 * 2]])
    found = parse_detection(detection_json(IMAGE, [published]), CLASS_IDS)
    rebuilt = to_coco([found], ["a", "b", "c"], CLASS_IDS)["annotations"]
    assert rebuilt == [published]
    for key in ("bbox", "area", "segmentation"):
        assert repr(rebuilt[0][key]) == repr(published[key])
    assert found.usable.dtype == np.bool_


@given(st.lists(st.integers(0, 1), min_size=48, max_size=48))
@settings(max_examples=60, deadline=None)
def test_masks_as_run_lengths_and_compressed(bits: list[int]) -> None:
    pixels = np.array(bits, np.uint8).reshape(6, 8)
    column_major = pixels.T.ravel().tolist()
    counts, value = [0], 0
    for bit in column_major:
        if bit != value:
            counts.append(0)
            value = bit
        counts[-1] += 1
    compressed = coco_mask.encode(np.asfortranarray(pixels))["counts"].decode()
    for runs in (counts, compressed):
        found = parse(segmentation={"size": [6, 8], "counts": runs}, iscrowd=1)
        np.testing.assert_array_equal(found.mask(0), pixels)
        assert found.is_crowd.tolist() == [True]


def test_masks_of_polygons() -> None:
    mask = parse().mask(0)
    assert mask.shape == (6, 8) and mask.sum() == 6
    assert parse(segmentation=[]).mask(0) is None
    assert parse(segmentation=None).rle(0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 3}, "annotation 11 has the unknown category_id 3"),
        ({"category_id": "5"}, "no number as its category_id"),
        ({"id": None}, "no number as its id"),
        ({"bbox": [1, 2, 3]}, "bbox .* is not four finite numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "bbox .* is not four finite numbers"),
        ({"area": None}, "area None is not a finite number"),
        ({"iscrowd": 2}, "iscrowd 2"),
        ({"segmentation": "x"}, "neither polygons nor run lengths"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "not pairs of finite numbers"),
        ({"segmentation": {"size": [8, 6], "counts": [48]}}, r"run lengths of size \[8, 6\]"),
        ({"segmentation": {"size": [6, 8], "counts": [40]}}, "run lengths of 40 pixels, the image has 48"),
        ({"segmentation": {"size": [6, 8], "counts": [50, -2]}}, "are not numbers"),
        ({"segmentation": {"size": [6, 8], "counts": "P"}}, "cut off"),
        ({"segmentation": {"size": [6, 8], "counts": "\n"}}, "no character of compressed"),
        ({"segmentation": {"size": [6, 8]}}, "are not numbers"),
    ],
)
def test_contradictions_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RejectedSample, match=message):
        parse(**changes)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_rejected(number: float) -> None:
    with pytest.raises(RejectedSample, match="can't be stored"):
        parse(bbox=[0, 0, number, 1])
    content = detection_json(IMAGE, [an_object()])
    with pytest.raises(RejectedSample, match=r"not valid JSON|finite"):
        parse_detection(content.replace(b"6.75", json.dumps(number).encode()), CLASS_IDS)
    with pytest.raises(RejectedSample, match="finite"):
        parse_detection(content.replace(b"6.75", b"1e999"), CLASS_IDS)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"image_id":1}', detection_json(IMAGE | {"height": 0}, [])],
)
def test_what_is_no_annotation_is_rejected(content: bytes) -> None:
    with pytest.raises(RejectedSample, match="annotation"):
        parse_detection(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [1, 1, 0, 2]},
        {"bbox": [1, 1, -3, 2]},
        {"bbox": [-1.5, 1, 3, 2]},
        {"bbox": [6, 1, 3.5, 2]},
        {"bbox": [0.1, 0.2, 0.3, 0.4]},
    ],
)
def test_oddities_of_published_datasets_are_kept_and_marked(changes: dict[str, Any]) -> None:
    found = parse(**changes)
    assert found.usable.tolist() == [False]
    assert to_coco([found], list("abc"), CLASS_IDS)["annotations"] == [an_object(**changes)]
    assert parse(bbox=[-1, -0.5, 9, 7]).usable.tolist() == [True]


@pytest.mark.parametrize(
    "polygons", [[[1, 1, 4, 1]], [[1, 1, 4, 1, 4, 4], [2, 2]], [[0, 0, 2e8, 2e8, 0, 2e8]]]
)
def test_a_polygon_that_is_none_costs_the_mask_and_not_the_box(polygons: list[list[float]]) -> None:
    found = parse(segmentation=polygons)
    assert (found.usable.tolist(), found.usable_masks.tolist()) == ([True], [False])
    assert "its mask can't be used" in str(found.oddities[0])


@pytest.mark.parametrize(
    ("left_out", "given", "wanted"),
    [
        ({"iscrowd"}, {}, {"iscrowd": 0}),
        ({"area"}, {"segmentation": None}, {"area": 6.0}),
        ({"area"}, {"segmentation": [[0, 0, 4, 0, 4, 4]]}, {"area": 8.0}),
        ({"area"}, {"segmentation": {"size": [6, 8], "counts": [40, 8]}}, {"area": 8.0}),
        (set(), {"iscrowd": None}, {"iscrowd": 0}),
        (set(), {"area": None}, {"area": 6.0}),
        (set(), {"area": -5}, {"area": 6.0}),
    ],
)
def test_what_tools_leave_out_has_its_natural_value(
    left_out: set[str], given: dict[str, Any], wanted: dict[str, Any]
) -> None:
    item = {
        name: value for name, value in an_object(bbox=[1, 1, 3, 2], **given).items() if name not in left_out
    }
    found = completed(item)
    assert found == item | wanted
    assert parse_detection(detection_json(IMAGE, [found]), CLASS_IDS).usable.tolist() == [True]


def mask_png(values: np.ndarray, mode: str = "L", kind: str = "PNG") -> bytes:
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    buffer = io.BytesIO()
    (image if mode in ("L", "P") else image.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "P"])
def test_mask_values_are_classes(mode: str) -> None:
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    content = mask_png(values, mode)
    np.testing.assert_array_equal(read_mask(content), values)
    check_mask(content, 47)
    with pytest.raises(
        RejectedSample, match=r"value 47 at row 5, column 7: it is none of 0 \(ignored\) and the 46 classes"
    ):
        check_mask(content, 46)
    small = resize_mask(content, 4, 3)
    assert set(read_mask(small).ravel()) <= set(values.ravel()) and read_mask(small).shape == (3, 4)
    assert resize_mask(content, 8, 6) is content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (mask_png(np.zeros((6, 8), np.uint8), "RGB"), "mode is RGB"),
        (mask_png(np.zeros((6, 8), np.uint16), "L"), "mode is I;16"),
        (mask_png(np.zeros((6, 8), np.uint8), "L", "JPEG"), "not an intact PNG"),
        (mask_png(np.zeros((6, 8), np.uint8))[:-14], "damaged PNG data"),
        (b"", "not an intact PNG"),
    ],
)
def test_what_is_no_mask_is_rejected(content: bytes, message: str) -> None:
    with pytest.raises(RejectedSample, match=message):
        check_mask(content, 255)


def test_annotations_of_another_size_are_rejected() -> None:
    detection, mask = detection_json(IMAGE, []), mask_png(np.ones((6, 8), np.uint8))
    expect_same_size(detection, (6, 8))
    stored, occurring = fit_mask(mask, (6, 8), (6, 8))
    assert stored is mask and np.flatnonzero(occurring).tolist() == [1]
    assert read_mask(fit_mask(mask, (6, 8), (3, 4))[0]).shape == (3, 4)
    with pytest.raises(RejectedSample, match=r"of 8 x 6 pixels, the image has 6 x 8$"):
        expect_same_size(detection, (8, 6))
    with pytest.raises(RejectedSample, match=r"of 8 x 6 pixels, the image has 6 x 8, turned$"):
        fit_mask(mask, (8, 6), (8, 6), if_turned=", turned")


@pytest.mark.parametrize(
    ("found", "damage"),
    [
        (b'"area":6.75', b'"area":1e999'),
        (b'"area":6.75', b'"area":1' + b"0" * 400),
        (b'"area":6.75', b'"area":1' + b"0" * 5000),
        (b'"category_id":5', b'"category_id":1' + b"0" * 30),
        (b'"height":6', b'"height":1' + b"0" * 30),
        (b'"image_id":7', b'"image_id":[7]'),
        (b'"iscrowd":0', b'"iscrowd":' + b"[" * 5000 + b"]" * 5000),
    ],
    ids=lambda part: part[:24].decode(),
)
def test_numbers_that_nothing_holds_are_rejected(found: bytes, damage: bytes) -> None:
    content = detection_json(IMAGE, [an_object()])
    assert found in content
    for ids in (CLASS_IDS, None):
        with pytest.raises(RejectedSample):
            parse_detection(content.replace(found, damage), ids)


def test_an_image_without_its_size_is_rejected() -> None:
    with pytest.raises(RejectedSample, match="no height"):
        detection_json({name: value for name, value in IMAGE.items() if name != "height"}, [])


def test_a_run_length_without_end_is_rejected_at_once() -> None:
    with pytest.raises(RejectedSample, match="more than 60 bits"):
        parse(iscrowd=1, segmentation={"size": [6, 8], "counts": "P" * 1_000_000})


@pytest.mark.parametrize("polygons", [[[]], [[1, 2]], [[1, 2], [1, 1, 4, 1, 4, 3, 1, 3]]])
def test_polygons_without_pixels_give_a_mask(polygons: list[list[int]]) -> None:
    mask = parse(segmentation=polygons).mask(0)
    assert mask.shape == (6, 8) and bool(mask.any()) == (len(polygons) > 1)


@pytest.mark.parametrize("far", [1e7, 1e18, -1e30, 2**70, 1e308])
def test_a_polygon_that_goes_to_the_moon_costs_nothing(far: float) -> None:
    """pycocotools takes memory by the pixel of its edges, and dies of more than it can count."""
    found = parse(segmentation=[[1, 1, far, 1, 4, 3, 1, 3]])
    assert found.oddities == [
        "a polygon reaches far out of the image of 8 x 6 pixels: its mask can't be used"
    ]
    assert found.mask(0).shape == (6, 8)
    assert found.drawable_objects[0]["segmentation"]["size"] == [6, 8]
    near = parse()
    assert near.drawable_objects == near.objects
    assert parse(segmentation=[[1, 1, 9.5, 1, 4, 6.5, -1, 3]]).usable.all()


def test_more_pixels_than_an_image_has_are_rejected() -> None:
    with pytest.raises(RejectedSample, match="pixels"):
        parse_detection(detection_json({**IMAGE, "width": 1 << 40}, []))
