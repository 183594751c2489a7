"""Joint transforms: pixels, boxes, masks and label maps stay together under every crop, resize and flip."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as runs

from convmlp.transforms.joint_view import IGNORED, JointView, fitted
from convmlp.transforms.label_map_transforms import (
    SegmentationEvalTransform,
    SegmentationTrainTransform,
    distort_colors,
)
from convmlp.transforms.object_transforms import (
    DetectionTrainTransform,
    DetectionTransform,
    Objects,
    pack_masks,
    unpack_masks,
)
from convmlp.transforms.pixels import Box

HEIGHT, WIDTH = 60, 80
MEAN = (0.2, 0.4, 0.6)


@st.composite
def views(draw: st.DrawFn) -> JointView:
    """Any box of a HEIGHT x WIDTH image, seen at up to three times or a third of its size."""
    high, wide = draw(st.integers(9, HEIGHT)), draw(st.integers(9, WIDTH))
    box = Box(draw(st.integers(0, HEIGHT - high)), draw(st.integers(0, WIDTH - wide)), high, wide)
    zoom = draw(st.floats(1 / 3, 3))
    size = max(1, round(high * zoom)), max(1, round(wide * zoom))
    return JointView((HEIGHT, WIDTH), box, size, draw(st.booleans()))


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[int, int, int, int]:
    left, top = draw(st.integers(0, WIDTH - 4)), draw(st.integers(0, HEIGHT - 4))
    return left, top, draw(st.integers(left + 3, WIDTH)), draw(st.integers(top + 3, HEIGHT))


def painted(rectangle: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = rectangle
    map_ = np.zeros((HEIGHT, WIDTH), np.uint8)
    map_[top:bottom, left:right] = 1
    return map_


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def polygon(rectangle: tuple[int, int, int, int]) -> list[list[float]]:
    left, top, right, bottom = map(float, rectangle)
    return [[left, top, right, top, right, bottom, left, bottom]]


@settings(max_examples=150)
@given(views(), rectangles())
def test_a_box_s_pixels_stay_the_object_s_pixels(
    view: JointView, rectangle: tuple[int, int, int, int]
) -> None:
    """The moved box holds the moved object: within a pixel of the image that is coarser."""
    seen = view.label_map(painted(rectangle))
    (box,) = view.boxes(np.array([rectangle], np.float64), (HEIGHT, WIDTH))
    assert seen.shape == view.size
    if not seen.any():
        assert min(box[2:] - box[:2]) <= 1.0
        return
    assert np.abs(extent(seen) - box).max() <= 1.0
    pixels = np.repeat(255 * painted(rectangle)[..., None], 3, axis=2)
    out = np.empty((*view.size, 3), np.uint8)
    view.pixels(view.box.cut(pixels, view.stored), out)
    left, top, right, bottom = box
    rows = slice(int(np.ceil(top + 2)), max(0, int(bottom - 2)))
    columns = slice(int(np.ceil(left + 2)), max(0, int(right - 2)))
    inner = out[rows, columns]
    assert (inner > 127).all()
    out[int(max(0, top - 2)) : int(np.ceil(bottom + 2)), int(max(0, left - 2)) : int(np.ceil(right + 2))] = 0
    assert (out <= 127).all()


@settings(max_examples=150)
@given(views(), rectangles())
def test_masks_agree_with_boxes_however_they_are_written(
    view: JointView, rectangle: tuple[int, int, int, int]
) -> None:
    encoded = runs.encode(np.asfortranarray(painted(rectangle)))
    size = (HEIGHT, WIDTH)
    plain = {"size": list(size), "counts": np.diff(_changes(painted(rectangle))).tolist()}
    sampled = view.mask(encoded, size)
    np.testing.assert_array_equal(sampled, view.label_map(painted(rectangle)))
    np.testing.assert_array_equal(sampled, view.mask(plain, size))
    drawn = view.mask(polygon(rectangle), size)
    assert drawn.shape == sampled.shape == view.size
    (box,) = view.boxes(np.array([rectangle], np.float64), size)
    if min(box[2:] - box[:2]) > 3:
        assert np.abs(extent(drawn) - box).max() <= 1.5
        # Drawing and sampling differ along the outline at most.
        outline = 2 * (box[2:] - box[:2]).sum() + 8
        assert np.count_nonzero(drawn != sampled) <= outline


def _changes(map_: np.ndarray) -> np.ndarray:
    flat = np.concatenate([[0], map_.T.ravel()])
    return np.concatenate([[0], np.flatnonzero(np.diff(flat)), [map_.size]])


def test_annotations_of_another_size_are_scaled() -> None:
    """Images may have been shrunk when they were prepared; their objects were not."""
    view = JointView((50, 100), Box(0, 0, 50, 100), (100, 200), True)
    boxes = view.boxes(np.array([[40.0, 20.0, 80.0, 60.0]]), (200, 400))
    np.testing.assert_allclose(boxes, [[160, 10, 180, 30]])
    mask = view.mask([[40.0, 20.0, 80.0, 20.0, 80.0, 60.0, 40.0, 60.0]], (200, 400))
    assert extent(mask) == [160, 10, 180, 30]


@given(st.integers(1, 40), st.integers(0, 4), st.integers(0, 9))
def test_bits_hold_masks(width: int, count: int, seed: int) -> None:
    masks = np.random.default_rng(seed).integers(0, 2, (count, 3, width), dtype=np.uint8)
    packed = pack_masks(masks)
    assert packed.shape == (count, 3, -(-width // 8))
    np.testing.assert_array_equal(unpack_masks(torch.from_numpy(packed), width).numpy(), masks)


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_sides_fit(height: int, width: int) -> None:
    high, wide = fitted(height, width, 800, 1333)
    assert min(high, wide) <= 800 and max(high, wide) <= 1333
    assert min(high, wide) == 800 or max(high, wide) == 1333


def objects(*found: tuple[int, int, int, int]) -> Objects:
    boxes = np.array(found, np.float64).reshape(-1, 4)
    masks = [polygon(one) for one in found]
    return Objects(boxes, np.arange(len(found), dtype=np.int64), masks, (HEIGHT, WIDTH))


def test_the_same_key_gives_the_same_view() -> None:
    transform = DetectionTrainTransform((40, 50, 60), 100, crop=(0.5, 1.0))

    def view(key: int) -> JointView:
        transform.seed(key)
        return transform.view(HEIGHT, WIDTH)

    assert view(3) == view(3)
    drawn = [view(key) for key in range(40)]
    assert len({one.size for one in drawn}) > 10 and {one.flip for one in drawn} == {True, False}


def test_objects_outside_the_crop_are_left_out_and_their_masks_never_decoded() -> None:
    transform = DetectionTransform((64,), 100, masks=True)
    view = JointView((HEIGHT, WIDTH), Box(0, 0, 30, 40), (60, 80), False)
    found = objects((2, 2, 20, 20), (50, 40, 70, 55), (30, 10, 80, 60))
    found.segmentations[1] = "this would raise"
    target = transform.target(found, view)
    np.testing.assert_allclose(target["boxes"], [[4, 4, 40, 40], [60, 20, 80, 60]])
    assert target["boxes"].dtype == np.float32 and target["labels"].tolist() == [0, 2]
    masks = unpack_masks(torch.from_numpy(target["masks"]), 80).numpy()
    assert [extent(mask) for mask in masks] == [[4, 4, 40, 40], [60, 20, 80, 60]]


def test_images_without_objects_have_empty_targets() -> None:
    target = DetectionTransform((64,), 100, masks=True).target(
        objects(), JointView((HEIGHT, WIDTH), Box(0, 0, HEIGHT, WIDTH), (64, 85), False)
    )
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 64, 11)


def label_map() -> np.ndarray:
    map_ = np.full((HEIGHT, WIDTH), 1, np.uint8)
    map_[:, 40:] = 2
    map_[:20] = IGNORED
    return map_


@settings(max_examples=60)
@given(st.integers(0, 2**63))
def test_crops_show_the_same_place_in_image_and_label_map(key: int) -> None:
    transform = SegmentationTrainTransform(
        48, mean=MEAN, short_side=HEIGHT, max_side=400, scale=(0.5, 2.0), photometric=False
    )
    labels = label_map()
    colors = np.zeros((256, 3), np.uint8)
    colors[[1, 2, IGNORED]] = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    transform.seed(key)
    view = transform.view(labels)
    out, seen = np.empty((48, 48, 3), np.uint8), np.empty((48, 48), np.uint8)
    transform.render(view.box.cut(colors[labels], view.stored), labels, view, out, seen)
    high, wide = view.size
    sure = out[:high, :wide].max(axis=2) > 250
    np.testing.assert_array_equal(out[:high, :wide][sure] > 127, colors[seen[:high, :wide]][sure] > 127)
    assert sure.mean() > 0.8
    for rest in (seen[high:], seen[:, wide:]):
        assert (rest == IGNORED).all()
    assert (out[high:] == [51, 102, 153]).all() and (out[:, wide:] == [51, 102, 153]).all()


def test_crops_of_one_class_are_drawn_again() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[100:, 100:] = 1
    shares = []
    for max_share in (0.75, 1.0):
        transform = SegmentationTrainTransform(
            64, mean=MEAN, short_side=200, max_side=200, scale=(1, 1), max_share=max_share, photometric=False
        )
        mixed = 0
        for key in range(60):
            transform.seed(key)
            box = transform.view(labels).box
            cut = labels[box.top : box.top + 64, box.left : box.left + 64]
            mixed += 0.25 <= (cut == 1).mean() <= 0.75
        shares.append(mixed / 60)
    assert shares[0] > 0.8 > shares[1]


def test_colours_are_distorted_by_the_key_and_stay_within_range() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    def distorted(key: int) -> np.ndarray:
        random.seed(key)
        pixels = image.copy()
        distort_colors(pixels)
        return pixels

    np.testing.assert_array_equal(distorted(5), distorted(5))
    means = [distorted(key).mean() for key in range(60)]
    assert sum(np.array_equal(distorted(key), image) for key in range(60)) < 20
    assert min(means) > 40 and max(means) < 215 and np.std(means) > 10


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DetectionTransform((16,), 100), "32"),
        (lambda: DetectionTransform((200,), 100), "max_side"),
        (lambda: DetectionTrainTransform(crop=(0.0, 1.0)), "crop"),
        (lambda: SegmentationTrainTransform(16, mean=MEAN), "size must be at least 32"),
        (lambda: SegmentationTrainTransform(64, mean=MEAN, scale=(2.0, 1.0)), "scale"),
        (lambda: SegmentationEvalTransform(8), "short_side"),
    ],
)
def test_sizes_too_small_for_the_models_are_refused(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]
