"""Preparation's report of annotated objects: how many there are, which are left out of training, which are cut.

Annotations are stored as they were published, whatever is odd in them: evaluation compares with what everybody else
compares with. The report says object by object, in `odd_objects.jsonl`, what training does differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from data_prep.annotations.annotations import Detection
from data_prep.console import some_of
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError

ODD_OBJECTS_NAME = "odd_objects.jsonl"
_SHOWN = 3


class OddObject(BaseModel):
    """An object that training leaves out, or whose box it cuts at the image's edge, and why."""

    model_config = ConfigDict(frozen=True)

    split: str
    key: str
    annotation: int
    """Its id."""
    training: Literal["left out", "cut"]
    reason: str


class ObjectCounts(BaseModel):
    """Of annotated objects; crowds are left out of training too, as is the custom."""

    model_config = ConfigDict(frozen=True)

    total: int = 0
    crowds: int = 0
    left_out: int = 0
    cut: int = 0
    without_mask: int = 0

    @property
    def has_odd(self) -> bool:
        """Whether `odd_objects.jsonl` lists any."""
        return self.left_out + self.cut > 0

    def __add__(self, other: ObjectCounts) -> ObjectCounts:
        both = zip(self, other, strict=True)
        return ObjectCounts(**{name: mine + theirs for (name, mine), (_, theirs) in both})


def sum_objects(counts: Iterable[ObjectCounts]) -> ObjectCounts:
    """Of several shards together."""
    return sum(counts, ObjectCounts())


def objects_of(manifest: DatasetManifest) -> ObjectCounts | None:
    """Of a prepared dataset; None where it has no objects, or was prepared before they were counted."""
    counts = manifest.preprocessing.get("objects")
    return None if counts is None else ObjectCounts.model_validate(counts)


def report(found: Detection, split: str, key: str) -> tuple[ObjectCounts, list[OddObject]]:
    """The counts of an image's objects, and those that are odd."""
    odd = []
    described = zip(found.objects, found.oddities, found.overhangs.tolist(), strict=True)
    for item, reason, beyond in described:
        if reason is not None:
            odd.append(
                OddObject(split=split, key=key, annotation=item["id"], training="left out", reason=reason)
            )
        elif beyond > 0:
            words = (
                f"its box {item['bbox']} (left, top, width, height) reaches {beyond:.3g} pixels out of the image of "
                f"{found.width} x {found.height} pixels"
            )
            odd.append(OddObject(split=split, key=key, annotation=item["id"], training="cut", reason=words))
    left_out = sum(one.training == "left out" for one in odd)
    counts = ObjectCounts(
        total=len(found.objects),
        crowds=int(found.is_crowd.sum()),
        left_out=left_out,
        cut=len(odd) - left_out,
        without_mask=sum(not item.get("segmentation") for item in found.objects),
    )
    return counts, odd


def describe(counts: ObjectCounts) -> str:
    """`860,001 objects, 2 left out of training, 14 cut at the image's edge`."""
    parts = [f"{counts.total:,} objects"]
    parts += [f"{counts.left_out:,} left out of training"] if counts.left_out else []
    parts += [f"{counts.cut:,} cut at the image's edge"] if counts.cut else []
    return ", ".join(parts)


def check_budget(counts: ObjectCounts, odd: Iterable[OddObject], allowed: float, where: object) -> None:
    """Are so many objects unusable that the annotations are likely wrong as a whole?

    Args:
        allowed: share of all objects.
        where: the file that lists them.

    Raises:
        DataPrepError: more than that are.
    """
    most = int(allowed * counts.total)
    if counts.left_out <= most:
        return
    shown = _first([one for one in odd if one.training == "left out"])
    raise DataPrepError(
        f"{counts.left_out:,} of {counts.total:,} annotated objects can't be used, max_unusable_objects ({allowed:g}) "
        f"allows {most:,}: {shown}. All are in {where}. Boxes must be left, top, width, height in pixels of the "
        "image: correct the annotations, or raise max_unusable_objects to train without these objects"
    )


def _first(objects: Sequence[OddObject]) -> str:
    told = [f"image {one.key} of {one.split}, annotation {one.annotation}: {one.reason}" for one in objects]
    return some_of(told, _SHOWN, "; ")
