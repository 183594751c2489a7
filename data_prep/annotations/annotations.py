"""Detection annotations: what COCO publishes of one image, as one canonical JSON document.

`{"file_name", "height", "image_id", "objects", "width"}`, compact, keys sorted, UTF-8. `objects` are the
publisher's annotations of the image, in the published order and with every key but `image_id`; numbers keep
their values. So a dataset's `instances_*.json` can be rebuilt from its shards (`to_coco`).

Objects that training can't use but that are in published datasets (a box without area or more than a pixel outside
the image) are kept as they are, and `Detection.usable` is False for them, as `usable_masks` is for polygons of fewer
than three points; preparation lists them (`data_prep.annotations.object_report`). Objects that contradict themselves or
the image reject the sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from data_prep.annotations.detection_checks import (
    MOST_PIXELS,
    check_object,
    is_far,
    is_integer,
    oddity,
    oddity_of_box,
    overhang,
    reach,
)
from data_prep.errors import RejectedSample
from data_prep.images.masks import read_mask, resize_mask

_KEYS = {"file_name", "height", "image_id", "objects", "width"}


@dataclass(frozen=True)
class Detection:
    """One image's n objects."""

    image_id: int
    file_name: str
    height: int
    width: int
    objects: list[dict[str, Any]]
    """As published, but without `image_id`."""
    labels: NDArray[np.int64]
    """Shape (n,): positions in the dataset's classes."""

    @cached_property
    def boxes(self) -> NDArray[np.float64]:
        """Shape (n, 4): left, top, width, height in pixels."""
        return np.array([item["bbox"] for item in self.objects], np.float64).reshape(-1, 4)

    @cached_property
    def areas(self) -> NDArray[np.float64]:
        """Shape (n,): published areas of the masks in pixels, by which COCO tells small from large objects."""
        return np.array([item["area"] for item in self.objects], np.float64)

    @cached_property
    def is_crowd(self) -> NDArray[np.bool_]:
        """Shape (n,): the box holds many objects of its class; evaluation ignores it, training leaves it out."""
        return np.array([item["iscrowd"] for item in self.objects], np.bool_)

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """Shape (n,): the object has a box with an area inside the image."""
        return np.array(
            [oddity_of_box(item, self.height, self.width) is None for item in self.objects], np.bool_
        )

    @cached_property
    def usable_masks(self) -> NDArray[np.bool_]:
        """Shape (n,): the object has a usable box and a segmentation, whose polygons have three points or more."""
        whole = zip(self.objects, self.oddities, strict=True)
        return np.array([bool(item.get("segmentation")) and odd is None for item, odd in whole], np.bool_)

    @cached_property
    def oddities(self) -> list[str | None]:
        """Of each object, why training can't use it, or its mask; None where it can."""
        return [oddity(item, self.height, self.width) for item in self.objects]

    @cached_property
    def overhangs(self) -> NDArray[np.float64]:
        """Shape (n,): pixels by which the box reaches over the image's edge; training cuts them off."""
        return np.array([overhang(item, self.height, self.width) for item in self.objects], np.float64)

    @property
    def drawable_objects(self) -> list[dict[str, Any]]:
        """The objects, run lengths in the place of polygons that pycocotools can't draw: it would die of some."""
        return [
            item if _is_drawable(item, self.height, self.width) else {**item, "segmentation": self.rle(place)}
            for place, item in enumerate(self.objects)
        ]

    def rle(self, position: int) -> dict[str, Any] | None:
        """The object's mask as pycocotools' compressed run lengths; None where it has no segmentation."""
        from pycocotools import mask

        segmentation = self.objects[position].get("segmentation")
        if not segmentation:
            return None
        if isinstance(segmentation, list):
            # pycocotools takes none of fewer numbers; they cover no pixel.
            polygons = [polygon for polygon in segmentation if len(polygon) >= 4]
            if not polygons:
                return mask.encode(np.zeros((self.height, self.width), np.uint8, order="F"))
            most = reach(self.height, self.width)
            near = [
                np.clip(polygon, -most, most).tolist()
                if is_far(polygon, self.height, self.width)
                else polygon
                for polygon in polygons
            ]
            return mask.merge(mask.frPyObjects(near, self.height, self.width))
        if isinstance(segmentation["counts"], list):
            return mask.frPyObjects(segmentation, self.height, self.width)
        return segmentation

    def mask(self, position: int) -> NDArray[np.uint8] | None:
        """The object's mask, shape (height, width), values 0 and 1."""
        from pycocotools import mask

        encoded = self.rle(position)
        return None if encoded is None else mask.decode(encoded)


def _is_drawable(item: dict[str, Any], height: int, width: int) -> bool:
    polygons = item.get("segmentation")
    return not isinstance(polygons, list) or all(
        len(polygon) >= 4 and not is_far(polygon, height, width) for polygon in polygons
    )


def completed(item: dict[str, Any]) -> dict[str, Any]:
    """A published annotation, with what some tools leave out, or fill with null: it is no crowd, and its area is its
    polygons', its run lengths', or its box's. A negative area is none."""
    given = {
        name: value for name, value in item.items() if value is not None or name not in ("iscrowd", "area")
    }
    found = {"iscrowd": 0} | given
    if isinstance(area := found.get("area"), int | float) and area < 0:
        del found["area"]
    if "area" not in found and (area := _area(found)) is not None:
        found["area"] = area
    return found


def _area(item: dict[str, Any]) -> float | None:
    """In pixels; None where nothing says it, or what says it is damaged."""
    segmentation, box = item.get("segmentation"), item.get("bbox")
    try:
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            return float(sum(segmentation["counts"][1::2]))
        if segmentation and isinstance(segmentation, list):
            return float(sum(map(_polygon_area, segmentation)))
        return float(box[2] * box[3]) if isinstance(box, list) and len(box) == 4 else None
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return None


def _polygon_area(polygon: list[float]) -> float:
    """By the shoelace formula."""
    x, y = np.array(polygon, np.float64).reshape(-1, 2).T
    return float(abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2)


def detection_json(image: dict[str, Any], objects: Iterable[dict[str, Any]]) -> bytes:
    """The canonical document of an image and its annotations, both as COCO publishes them.

    Raises:
        RejectedSample: the image lacks its name or size, or a number in it is NaN or infinite.
    """
    if missing := [name for name in ("id", "file_name", "height", "width") if name not in image]:
        raise RejectedSample(f"its entry among the document's images has no {' and no '.join(missing)}")
    content = {
        "image_id": image["id"],
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "objects": [{key: value for key, value in item.items() if key != "image_id"} for item in objects],
    }
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (ValueError, RecursionError) as error:
        raise RejectedSample(f"the annotation can't be stored: {error}") from None


def parse_detection(content: bytes, class_ids: Sequence[int] | None = None) -> Detection:
    """A stored annotation.

    Args:
        content: what `detection_json` made.
        class_ids: the publisher's category ids by label (the manifest's); by default ids are labels.

    Raises:
        RejectedSample: it is no such document, contradicts itself, or has a category that is not among the ids.
    """
    try:
        # As fast as it gets: readers do this for every image; its numbers are checked with the objects.
        fields = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise RejectedSample(f"the annotation is not valid JSON: {error}") from None
    if not isinstance(fields, dict) or set(fields) != _KEYS or not isinstance(fields["objects"], list):
        raise RejectedSample(f"the annotation must be an object with {', '.join(sorted(_KEYS))}")
    height, width = fields["height"], fields["width"]
    sizes = is_integer(height) and is_integer(width) and min(height, width) > 0
    if not sizes or height * width > MOST_PIXELS:
        raise RejectedSample(f"the annotation says the image has {width} x {height} pixels")
    if not is_integer(fields["image_id"]) or not isinstance(fields["file_name"], str):
        raise RejectedSample("the annotation's image_id is no number, or its file_name no text")
    label_of = None if class_ids is None else {number: label for label, number in enumerate(class_ids)}
    labels = []
    for item in fields["objects"]:
        check_object(item, height, width)
        label = item["category_id"] if label_of is None else label_of.get(item["category_id"])
        if label is None:
            raise RejectedSample(f"annotation {item['id']} has the unknown category_id {item['category_id']}")
        labels.append(label)
    return Detection(
        fields["image_id"], fields["file_name"], height, width, fields["objects"], np.array(labels, np.int64)
    )


def to_coco(
    images: Iterable[Detection], classes: Sequence[str], class_ids: Sequence[int] | None = None
) -> dict[str, Any]:
    """An `instances` document as pycocotools reads it, of stored annotations.

    Args:
        images: the annotations.
        classes: class names by label.
        class_ids: category ids by label, by default 0..n-1.
    """
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    for image in images:
        content["images"].append(
            {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width}
        )
        content["annotations"] += [item | {"image_id": image.image_id} for item in image.objects]
    numbers = range(len(classes)) if class_ids is None else class_ids
    content["categories"] = [
        {"id": number, "name": name} for number, name in zip(numbers, classes, strict=True)
    ]
    return content


def expect_same_size(content: bytes, size: tuple[int, int], *, if_turned: str = "") -> None:
    """Compare an image's size with what its annotation says.

    Args:
        content: what `detection_json` made.
        size: height and width of the image, as the job sees it.
        if_turned: more words, where the annotation's size is the image's with its sides exchanged.

    Raises:
        RejectedSample: it is of an image of another size.
    """
    fields = from_json(content)
    _expect_size((fields["height"], fields["width"]), size, if_turned)


def fit_mask(
    content: bytes, source_size: tuple[int, int], stored_size: tuple[int, int], *, if_turned: str = ""
) -> tuple[bytes, NDArray[np.bool_]]:
    """A mask as it is stored, shrunk with its image, and which of the 256 values occur in it.

    Args:
        content: the mask, whose values the source has checked.
        source_size: height and width of the image in the source, as the job sees it.
        stored_size: height and width of the image as stored and seen.
        if_turned: as in `expect_same_size`.

    Raises:
        RejectedSample: it is of an image of another size.
    """
    values = read_mask(content)
    _expect_size(values.shape, source_size, if_turned)
    occurring = np.bincount(values.ravel(), minlength=256) > 0
    return resize_mask(content, stored_size[1], stored_size[0]), occurring


def _expect_size(size: tuple[int, ...], expected: tuple[int, int], if_turned: str) -> None:
    if size != expected:
        more = if_turned if size == expected[::-1] else ""
        raise RejectedSample(
            f"the annotation is of {size[1]} x {size[0]} pixels, the image has {expected[1]} x {expected[0]}{more}"
        )
