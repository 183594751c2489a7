"""Reading for detection and segmentation: both formats alike, from processes or not, through augmentation and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotated import CLASS_IDS, IMAGES, rectangles, stripes

from convmlp.transforms.image_transforms import eval_transform
from convmlp.transforms.label_map_transforms import SegmentationEvalTransform, SegmentationTrainTransform
from convmlp.transforms.object_transforms import DetectionTrainTransform, DetectionTransform, unpack_masks
from convmlp_platform.data.dataset.damage import Quarantine
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading.loader import EvalLoader, MicroBatch, TrainLoader
from convmlp_platform.data.reading.reader import task_reading
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.errors import DataError

FORMATS = ("webdataset", "ffcv")
MEAN = (0.5, 0.5, 0.5)
DETECTION = DetectionTrainTransform((64, 80), 160, masks=True, crop=(0.6, 1.0))
SEGMENTATION = SegmentationTrainTransform(64, mean=MEAN, short_side=64, max_side=256)


def split_of(folder: Path, format: str = "webdataset") -> ShardedSplit:
    return ShardedSplit(folder, open_manifest(str(folder)), "train", format)


def training(split: ShardedSplit, transform: Any, *, workers: int = 0, **rest: Any) -> list[MicroBatch]:
    """Six steps of two micro-batches of three."""
    order = SampleOrder(len(split), num_streams=2, seed=3, block=2, window=4)
    loader = TrainLoader(split, transform, order, 6, 3, 0, 1, workers, **rest)
    return [micro for micros in loader.steps(0, 6) for micro in micros]


def evaluated(split: ShardedSplit, transform: Any, *, workers: int = 0) -> list[MicroBatch]:
    return list(EvalLoader(split, transform, 4, 0, 1, workers))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


def all_same(ours: list[MicroBatch], wanted: list[MicroBatch]) -> bool:
    return len(ours) == len(wanted) and all(
        same(one.images, other.images) and same(one.targets, other.targets)
        for one, other in zip(ours, wanted, strict=True)
    )


@pytest.mark.parametrize(
    ("dataset", "train", "evaluation"),
    [
        (rectangles, DETECTION, DetectionTransform((64,), 128, masks=True)),
        (stripes, SEGMENTATION, SegmentationEvalTransform(64, 128)),
    ],
)
def test_formats_and_reader_processes_give_the_same(dataset: Any, train: Any, evaluation: Any) -> None:
    first = split_of(dataset())
    wanted, held_out = training(first, train), evaluated(first, evaluation)
    assert len(wanted) == 12 and sum(len(micro.targets) for micro in held_out) == IMAGES
    kept = training(first, train, workers=2)  # all kept: no memory is used twice while it is looked at
    assert all_same(kept, wanted)
    assert all_same(evaluated(first, evaluation, workers=1), held_out)
    other = split_of(dataset(), "ffcv")
    assert all_same(training(other, train), wanted)
    assert all_same(evaluated(other, evaluation), held_out)


def test_objects_are_where_their_pixels_are() -> None:
    seen = 0
    for micro in training(split_of(rectangles()), DETECTION):
        for image, target in zip(micro.images, micro.targets, strict=True):
            assert image.dtype == torch.uint8 and image.stride(0) == 1 and image.shape[0] == 3
            masks = unpack_masks(target["masks"], image.shape[-1])
            assert masks.shape == (len(target["boxes"]), *image.shape[-2:])
            for box, label, mask in zip(target["boxes"], target["labels"].tolist(), masks, strict=True):
                left, top, right, bottom = box.tolist()
                if min(right - left, bottom - top) < 8:
                    continue
                inner = image[:, int(top) + 3 : int(bottom) - 3, int(left) + 3 : int(right) - 3].flatten(1)
                assert (inner.argmax(0) == label).all()
                inside = mask[int(top) + 2 : int(bottom) - 2, int(left) + 2 : int(right) - 2]
                assert inside.all() and mask.sum() <= (right - left + 2) * (bottom - top + 2)
                seen += 1
    assert seen > 20


def test_evaluation_keeps_what_was_published() -> None:
    """Boxes back at the published size are the published ones; crowds and odd objects are left to the metric."""
    micros = evaluated(split_of(rectangles()), DetectionTransform((96,), 192))
    targets = sorted(
        (target for micro in micros for target in micro.targets), key=lambda one: one["image_id"]
    )
    assert [target["image_id"] for target in targets] == [1000 + number for number in range(IMAGES)]
    assert [len(target["objects"]) for target in targets] == [2, 2, 2, 2, 0, 4]
    for number, target in enumerate(targets):
        assert target["size"] == (70, 90 + 6 * number) and "masks" not in target
        usable = [one for one in target["objects"] if not one["iscrowd"] and one["bbox"][2]]
        scale = target["size"][0] / 96
        boxes = target["boxes"] * scale
        boxes[:, 2:] -= boxes[:, :2]
        wanted = torch.tensor([one["bbox"] for one in usable], dtype=torch.float32).reshape(-1, 4)
        torch.testing.assert_close(boxes, wanted, atol=0.6, rtol=0)
        assert [CLASS_IDS[label] for label in target["labels"].tolist()] == [
            one["category_id"] for one in usable
        ]


def test_label_maps_show_the_same_as_the_image() -> None:
    for micro in training(
        split_of(stripes()), SegmentationTrainTransform(64, mean=MEAN, short_side=64, photometric=False)
    ):
        assert isinstance(micro.images, torch.Tensor) and isinstance(micro.targets, torch.Tensor)
        assert micro.images.shape == (3, 3, 64, 64) and micro.targets.shape == (3, 64, 64)
        sure = (micro.images.max(1).values > 200) & (micro.targets != 255)
        assert sure.float().mean() > 0.3
        assert (micro.images.argmax(1)[sure] == micro.targets[sure]).float().mean() > 0.97
    (first, _) = evaluated(split_of(stripes()), SegmentationEvalTransform(140, 400))
    assert [image.shape[1] for image in first.images] == [140] * 4
    assert [one.shape[1] for one in first.targets] == [round(one.shape[2] / 2) for one in first.images]
    assert all(one.shape[0] == 70 and one.dtype == torch.uint8 for one in first.targets)
    assert (first.targets[0][0] == 255).all() and set(first.targets[0][1:].unique().tolist()) == {0, 1, 2}


def _flip(split: ShardedSplit, sample: int, column: str) -> None:
    number, position = split.locate(sample)
    index = split.index(number)
    start, length = (int(getattr(index, f"{column}{part}")[position]) for part in ("offset", "length"))
    path = Path(split.folder) / split.shards[number].file
    content = bytearray(path.read_bytes())
    content[start + length // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(("dataset", "transform"), [(rectangles, DETECTION), (stripes, SEGMENTATION)])
@pytest.mark.parametrize("column", ["", "annotation_"])
def test_damaged_images_and_annotations_are_repaired_or_replaced(
    dataset: Any, transform: Any, column: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(dataset(), tmp_path / "data")
    wanted = training(split_of(folder), transform)
    _flip(split_of(folder), 2, column)
    with pytest.raises(DataError, match="is damaged"):
        training(split_of(folder), transform)
    notes = Quarantine(IMAGES, 0.5, str(folder), tell=lambda _line: None)
    other = split_of(folder, "ffcv")
    repaired = training(split_of(folder), transform, workers=1, quarantine=notes, twin=lambda: other)
    assert all_same(repaired, wanted) and set(notes.repaired) == {2} and not notes.left_out
    replaced = training(
        split_of(folder), transform, quarantine=Quarantine(IMAGES, 0.5, "", tell=lambda _line: None)
    )
    places = [(micro, place) for micro in replaced for place in micro.replaced.nonzero().flatten().tolist()]
    assert places
    for micro, place in places:
        assert micro.sample_ids[place] == 2
        donor = (place + 1) % 3
        assert same(micro.images[place], micro.images[donor])
        assert same(micro.targets[place], micro.targets[donor])


def test_masks_with_unknown_values_are_one_clear_error() -> None:
    split = split_of(stripes())
    split.manifest = split.manifest.model_copy(update={"classes": ["only", "two"]})
    with pytest.raises(
        DataError, match=r"mask has value 3 at row \d+, column \d+: it is none of 0 .ignored. and the "
    ):
        training(split, SEGMENTATION)


def test_objects_of_unknown_categories_are_one_clear_error() -> None:
    split = split_of(rectangles())
    split.manifest = split.manifest.model_copy(update={"class_ids": [3, 17, 91]})
    with pytest.raises(DataError, match=r"annotation \d+ has the unknown category_id 90"):
        training(split, DETECTION)


def test_another_task_s_transform_is_refused() -> None:
    manifest = open_manifest(str(rectangles()))
    for transform in (eval_transform(32, mean=MEAN, std=MEAN), SEGMENTATION):
        with pytest.raises(DataError, match=r"is for detection, a .* can't prepare its samples"):
            task_reading(manifest, transform)


def test_what_readers_need_no_library_for_is_json() -> None:
    """Published objects travel as they are stored."""
    (first, *_) = evaluated(split_of(rectangles()), DetectionTransform((64,), 128))
    assert json.loads(json.dumps(first.targets[0]["objects"])) == first.targets[0]["objects"]
    assert np.isfinite(first.targets[0]["boxes"].numpy()).all()
