"""An `instances_*.json` document: its categories, its images, and where their parts lie in the file."""

from __future__ import annotations

import json
import mmap
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.annotations.detection_checks import is_integer
from data_prep.errors import DataPrepError
from data_prep.sources.coco.json_ranges import JsonPart, json_parts

_SHOWN_NAMES = 5
_LISTS = {"images", "annotations", "categories"}


@dataclass
class DocumentImage:
    """An image of a document; `ranges` are start and length of its own entry and of its annotations' entries."""

    file_name: str = ""
    ranges: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True)
class CocoDocument:
    """The part of a document that a listing needs."""

    path: Path
    categories: dict[int, str]
    images: dict[int, DocumentImage]
    """By id, in the document's order."""


def map_document(path: Path) -> mmap.mmap:
    """The document's bytes, mapped into memory.

    Raises:
        DataPrepError: there is no such file, or it is empty.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DataPrepError(
            f"source.path: no annotations at {path}: unpack annotations_trainval2017.zip of cocodataset.org there, "
            "or name other image folders under source.splits"
        ) from None
    except (OSError, ValueError) as error:
        raise DataPrepError(f"source.path: can't read {path}: {error}") from None


def read_document(path: Path) -> CocoDocument:
    """Scan a document; its annotations' contents are checked later, image by image.

    Raises:
        DataPrepError: it is not such a document, ids occur twice, or an annotation has no image.
    """
    content = map_document(path)
    document = CocoDocument(path, {}, {})
    annotation_ids: set[int] = set()
    example: dict[int, int] = {}  # of every category in use, an annotation
    names = set[str]()
    for part in json_parts(content, _LISTS, str(path)):
        names.add(part.name)
        if part.name not in _LISTS:
            continue
        number = _number(part, "id", path)
        if part.name == "images":
            _add_image(document, number, part, content)
        elif part.name == "categories":
            _add_category(document, number, content[part.start : part.end])
        else:
            if number in annotation_ids:
                raise DataPrepError(f"{path}: two annotations have the id {number}")
            annotation_ids.add(number)
            example.setdefault(_number(part, "category_id", path), number)
            image = document.images.setdefault(_number(part, "image_id", path), DocumentImage())
            image.ranges.extend((part.start, part.end - part.start))
    _expect_all_known(document, example)
    if document.images and document.categories and "annotations" not in names:
        has = ", ".join(sorted(names - _LISTS)[:_SHOWN_NAMES]) or "no other"
        raise DataPrepError(
            f"{path} has no list annotations (other names in it: {has}): rename it, or add an empty one"
        )
    if not document.images or not document.categories:
        raise DataPrepError(
            f"{path} has {len(document.images)} images and {len(document.categories)} categories: it is no "
            "COCO instances document"
        )
    return document


def read_part(content: mmap.mmap, start: int, length: int, path: Path) -> dict[str, Any]:
    """The entry at a byte range of a mapped document.

    Raises:
        DataPrepError: there is none: the file was changed after it was listed.
    """
    try:
        value = json.loads(content[start : start + length])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataPrepError(f"{path} was changed while it was being prepared: start the job again")
    return value


def _add_image(document: CocoDocument, number: int, part: JsonPart, content: mmap.mmap) -> None:
    image = document.images.setdefault(number, DocumentImage())
    if image.file_name:
        raise DataPrepError(f"{document.path}: two images have the id {number}")
    file_name = _text(content[part.start : part.end], "file_name")
    if not file_name:
        raise DataPrepError(f"{document.path}: image {number} has no file_name")
    image.file_name = file_name
    image.ranges[:0] = array("q", (part.start, part.end - part.start))


def _add_category(document: CocoDocument, number: int, content: bytes) -> None:
    if number in document.categories:
        raise DataPrepError(f"{document.path}: two categories have the id {number}")
    name = _text(content, "name")
    if not name or not name.strip():
        raise DataPrepError(f"{document.path}: category {number} has no name")
    document.categories[number] = name


def _expect_all_known(document: CocoDocument, example: dict[int, int]) -> None:
    """Annotations may stand before images and categories, so this is known at the end only."""
    missing = [number for number, image in document.images.items() if not image.file_name]
    if missing:
        raise DataPrepError(
            f"{document.path}: annotations of {len(missing)} images that it doesn't list: "
            f"image_id {', '.join(map(str, missing[:3]))}"
        )
    unknown = [number for number in example if number not in document.categories]
    if unknown:
        examples = ", ".join(f"{n} (annotation {example[n]})" for n in unknown[:3])
        raise DataPrepError(f"{document.path}: {len(unknown)} category ids that it doesn't list: {examples}")


def _number(part: JsonPart, key: str, path: Path) -> int:
    value: Any = part.value.get(key) if isinstance(part.value, dict) else None
    if not is_integer(value):
        raise DataPrepError(
            f"{path}: byte {part.start:,}: an entry of {part.name} has no number as its {key}"
        )
    return value


def _text(content: bytes, key: str) -> str:
    """A string of an entry; empty if it has none that is UTF-8 and could be written as such again."""
    try:
        value = json.loads(content).get(key)
        return value if isinstance(value, str) and value.encode() else ""
    except (ValueError, RecursionError):
        return ""
