"""Predictions on a page: what is right, wrong and missed is told by marks and words, and is where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from convmlp_platform.pictures.annotate import draw_objects
from convmlp_platform.pictures.object_matches import match_objects
from convmlp_platform.pictures.predictions import (
    AreaPrediction,
    ClassPrediction,
    DrawnObjects,
    ObjectPrediction,
    Prediction,
    is_wrong,
    pixel_accuracy,
    predictions_sheet,
)
from convmlp_platform.pictures.style import WRONG, class_color

CLASSES = ["cat", "dog", "bird"]
GREY = Image.new("RGB", (60, 40), (120, 120, 120))


def objects(boxes: list[list[float]], labels: list[int], scores: list[float] | None = None) -> DrawnObjects:
    return DrawnObjects(
        np.array(boxes, float).reshape(-1, 4),
        np.array(labels, np.int64),
        None if scores is None else np.array(scores),
        is_crowd=None if scores is not None else np.zeros(len(labels), np.bool_),
    )


def has(picture: Image.Image, color: tuple[int, int, int]) -> bool:
    return bool((np.asarray(picture) == color).all(axis=-1).any())


LEFT, RIGHT = [2.0, 2, 20, 30], [30.0, 5, 58, 38]


def test_matching_is_by_class_place_and_order() -> None:
    found = objects([LEFT, LEFT, RIGHT, RIGHT], [0, 0, 0, 1], [0.9, 0.8, 0.7, 0.6])
    truth = objects([LEFT, RIGHT, [0, 0, 5, 5]], [0, 1, 2])
    assert truth.is_crowd is not None
    matches = match_objects(found.boxes, found.labels, truth.boxes, truth.labels, truth.is_crowd)
    assert matches.right.tolist() == [True, False, False, True]  # the second one found is there only once
    assert matches.missed.tolist() == [False, False, True]
    crowd = match_objects(
        found.boxes, found.labels, truth.boxes, np.zeros(3, np.int64), np.array([True, True, False])
    )
    assert crowd.excused.tolist() == [True, True, True, False]
    assert crowd.missed.tolist() == [False, False, True]


@given(st.lists(st.tuples(*[st.floats(0, 50)] * 4, st.integers(0, 2)), max_size=8))
def test_truth_itself_is_always_right(drawn: list[tuple[float, float, float, float, int]]) -> None:
    boxes = np.array([[x, y, x + w + 1, y + h + 1] for x, y, w, h, _ in drawn], float).reshape(-1, 4)
    labels = np.array([one[4] for one in drawn], np.int64)
    matches = match_objects(boxes, labels, boxes, labels, np.zeros(len(drawn), np.bool_))
    assert matches.right.all()
    assert not matches.missed.any()


@pytest.mark.parametrize(
    ("sample", "wrong"),
    [
        (ClassPrediction(GREY, np.array([0.7, 0.2, 0.1]), 0), False),
        (ClassPrediction(GREY, np.array([0.7, 0.2, 0.1]), 2), True),
        (ClassPrediction(GREY, np.array([0.7, 0.2, 0.1])), False),
        (ObjectPrediction(GREY, objects([LEFT], [0], [0.9]), objects([LEFT], [0])), False),
        (ObjectPrediction(GREY, objects([LEFT], [0], [0.2]), objects([LEFT], [0])), True),
        (ObjectPrediction(GREY, objects([LEFT, RIGHT], [0, 1], [0.9, 0.2]), objects([LEFT], [0])), False),
        (ObjectPrediction(GREY, objects([LEFT, RIGHT], [0, 1], [0.9, 0.8]), objects([LEFT], [0])), True),
        (ObjectPrediction(GREY, objects([], [], []), objects([], [])), False),
        (AreaPrediction(GREY, np.zeros((40, 60), int), np.zeros((40, 60), int)), False),
        (AreaPrediction(GREY, np.zeros((40, 60), int), np.full((40, 60), 255)), False),
        (AreaPrediction(GREY, np.zeros((40, 60), int), np.eye(40, 60, dtype=int)), True),
    ],
)
def test_what_is_wrong(sample: Prediction, wrong: bool) -> None:
    assert is_wrong(sample) is wrong
    page = predictions_sheet([sample, sample], CLASSES, title="a title", subtitle="words")
    assert page.mode == "RGB"
    if isinstance(sample, ClassPrediction | AreaPrediction):
        assert has(page, WRONG) is (wrong and isinstance(sample, ClassPrediction))


def test_missed_objects_are_dashed_and_found_ones_are_not() -> None:
    boxes, color = np.array([LEFT]), class_color(0)
    solid = np.asarray(draw_objects(GREY, boxes, [""], [color], scale=4))
    dashed = np.asarray(draw_objects(GREY, boxes, [""], [color], dashed=[True], scale=4))
    top = slice(12, 78)
    assert (solid[8, top] == color).all()
    assert (dashed[8, top] == color).all(axis=-1).any()
    assert (dashed[8, top] == 255).all(axis=-1).any()


def test_names_never_cover_small_boxes() -> None:
    small = [[10.0 * place, 50, 10.0 * place + 6, 56] for place in range(12)]
    picture = Image.new("RGB", (160, 120), (120, 120, 120))
    color = class_color(0)
    drawn = np.asarray(draw_objects(picture, np.array(small), ["person"] * 12, [color] * 12))
    for x0, y0, x1, y1 in np.array(small, int):
        inside = drawn[y0 + 2 : y1 - 1, x0 + 2 : x1 - 1]
        assert (inside == 120).all()


def test_pixels_without_a_label_count_neither_way() -> None:
    truth = np.array([[0, 1], [-1, 255]])
    assert pixel_accuracy(AreaPrediction(GREY, np.array([[0, 2], [2, 2]]), truth)) == 0.5


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (1600, 40), (8, 8)])
def test_images_of_any_size_have_a_place(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (9, 90, 90))
    width, height = size
    box = [[0.0, 0, width, height]]
    masks = [np.ones((height, width), np.uint8)]
    found = DrawnObjects(np.array(box), np.array([1]), np.array([0.8]), masks)
    truth = DrawnObjects(np.array(box), np.array([1]), None, masks, np.array([False]))
    labels = np.full((height, width), 2)
    for sample in (
        ClassPrediction(image, np.array([0.1, 0.8, 0.1]), 1),
        ObjectPrediction(image, found, truth),
        ObjectPrediction(image, found),
        AreaPrediction(image, labels, labels),
        AreaPrediction(image, labels),
    ):
        page = predictions_sheet([sample], CLASSES, title="t")
        assert page.width < 2500
        assert page.height < 2500


def test_a_long_name_and_many_classes_fit() -> None:
    names = [f"a class with a rather long name, number {number}" for number in range(150)]
    labels = np.arange(2400).reshape(40, 60) % 150
    page = predictions_sheet([AreaPrediction(GREY, labels, labels)], names, title="t")
    assert page.width < 2500
