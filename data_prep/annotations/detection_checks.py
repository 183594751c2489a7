"""Problems of one object of a detection annotation: contradictions, what training can't use, what it cuts."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

from data_prep.errors import RejectedSample

_OUTSIDE = 1.0
"""Pixels that a box may reach over the image's edge: publishers round."""


_LIMIT = 1 << 63
MOST_PIXELS = 1 << 28
"""Of an annotated image: more than of any that is prepared."""
_LARGEST = sys.float_info.max
_MOST_RUN_BITS = 60


def oddity(item: dict[str, Any], height: int, width: int) -> str | None:
    """Returns the reason why an object, or its mask alone, can't be used for training, or None."""
    return oddity_of_box(item, height, width) or _oddity_of_mask(item, height, width)


def oddity_of_box(item: dict[str, Any], height: int, width: int) -> str | None:
    """Returns the reason why an object can't be used for training at all, or None."""
    left, top, wide, high = item["bbox"]
    if left + wide <= left or top + high <= top:
        return f"its box of {wide} x {high} pixels has no area"
    image = f"the image of {width} x {height} pixels"
    if min(left, top) >= 0 and max(left + wide, top + high) <= 1 and min(height, width) > 1:
        return (
            f"its box {item['bbox']} (left, top, width, height) lies within one pixel of {image}: are these shares of "
            "its width and height?"
        )
    if left >= width or top >= height or left + wide <= 0 or top + high <= 0:
        return f"its box {item['bbox']} (left, top, width, height) lies outside {image}"
    if (beyond := overhang(item, height, width)) > _OUTSIDE:
        return (
            f"its box {item['bbox']} (left, top, width, height) reaches {beyond:g} pixels out of {image}, "
            f"more than {_OUTSIDE:g}"
        )
    return None


def _oddity_of_mask(item: dict[str, Any], height: int, width: int) -> str | None:
    segmentation = item.get("segmentation")
    if isinstance(segmentation, list) and any(len(polygon) < 6 for polygon in segmentation):
        return "a polygon has fewer than three points: its mask can't be used"
    if isinstance(segmentation, list) and any(is_far(polygon, height, width) for polygon in segmentation):
        return f"a polygon reaches far out of the image of {width} x {height} pixels: its mask can't be used"
    return None


def reach(height: int, width: int) -> int:
    """Pixels from the image's upper left corner, in any direction, beyond which no polygon is drawn: pycocotools takes
    time and memory for every pixel of an edge, wherever that lies."""
    return 2 * max(height, width)


def is_far(polygon: list[float], height: int, width: int) -> bool:
    """Whether a polygon has a point beyond the image's `reach`."""
    most = reach(height, width)
    return bool(polygon) and (max(polygon) > most or min(polygon) < -most)


def overhang(item: dict[str, Any], height: int, width: int) -> float:
    """Pixels by which an object's box reaches over the image's edge, which readers cut off; 0 where it doesn't."""
    left, top, wide, high = item["bbox"]
    # Rounded: sums like 0.1 + 639.9 are off by less than anybody publishes.
    return round(max(0.0, -left, -top, left + wide - width, top + high - height), 6)


def check_object(item: Any, height: int, width: int) -> None:
    """Has an annotation the keys of COCO's, all with possible values?

    Raises:
        RejectedSample: it doesn't; the message names it by its id.
    """
    if not isinstance(item, dict) or not is_integer(item.get("id")):
        raise RejectedSample("an object of the annotation has no number as its id")
    name = f"annotation {item['id']}"
    if not is_integer(item.get("category_id")):
        raise RejectedSample(f"{name} has no number as its category_id")
    box, area = item.get("bbox"), item.get("area")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise RejectedSample(f"{name}: bbox {box} is not four finite numbers")
    if not _is_number(area):
        raise RejectedSample(f"{name}: area {area} is not a finite number")
    if item.get("iscrowd") not in (0, 1):
        raise RejectedSample(f"{name}: iscrowd {item.get('iscrowd')} is neither 0 nor 1")
    segmentation = item.get("segmentation")
    if isinstance(segmentation, dict):
        _check_runs(segmentation, name, height, width)
    elif segmentation is not None:
        _check_polygons(segmentation, name)


def _check_polygons(polygons: Any, name: str) -> None:
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise RejectedSample(f"{name}: segmentation is neither polygons nor run lengths")
    for polygon in polygons:
        if len(polygon) % 2 or not all(map(_is_number, polygon)):
            raise RejectedSample(f"{name}: a polygon is not pairs of finite numbers")


def _check_runs(runs: dict[str, Any], name: str, height: int, width: int) -> None:
    if runs.get("size") != [height, width]:
        raise RejectedSample(
            f"{name}: run lengths of size {runs.get('size')}, the image is {[height, width]}"
        )
    counts = runs.get("counts")
    if isinstance(counts, str):
        counts = _uncompressed(counts, name)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise RejectedSample(f"{name}: the run lengths are not numbers")
    if sum(counts) != height * width:
        raise RejectedSample(f"{name}: run lengths of {sum(counts)} pixels, the image has {height * width}")


def _uncompressed(counts: str, name: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character from '0' on, lowest first, each with a sign and, from the
    third run on, as the difference to the run before the last (cocoapi, maskApi.c)."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise RejectedSample(f"{name}: {character!r} is no character of compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if shift > _MOST_RUN_BITS:
            raise RejectedSample(f"{name}: a compressed run length has more than {_MOST_RUN_BITS} bits")
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise RejectedSample(f"{name}: the compressed run lengths are cut off")
    return runs


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether it is a number without a fraction that 64 bits hold."""
    return type(value) is int and -_LIMIT <= value < _LIMIT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST
