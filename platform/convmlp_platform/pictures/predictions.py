"""Predictions beside the truth, as a sheet: classes, boxes and masks, or the classes of pixels.

Right and wrong are told by a mark (✓, ✗), by words and by dashes; colours only say which class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.pictures.annotate import draw_classes, draw_objects, resized
from convmlp_platform.pictures.contact_sheet import Cell, contact_sheet, fit
from convmlp_platform.pictures.object_matches import IOU, Matches, match_objects
from convmlp_platform.pictures.style import ACCENT, FAINT, WRONG, Color, class_color, side_by_side

SURE = 0.3
"""Objects are drawn from this score on."""
_ROOM = {"classes": (176, 176), "objects": (420, 340), "areas": (336, 300)}
_WIDTH = 1800
"""Of a page, about."""
_LEGEND = 60
_MOST_NAMED = 6


@dataclass(frozen=True)
class ClassPrediction:
    """An image's class: `probabilities` by class, and its label where that is known."""

    image: Image.Image
    probabilities: NDArray[np.floating]
    truth: int | None = None
    note: str = ""


@dataclass(frozen=True)
class DrawnObjects:
    """Objects in an image: boxes (n, 4) in its pixels (left, top, right, bottom), labels (n,), and, where there are
    any, scores (n,), masks (n arrays of the image's height and width, or None), and crowds (n,)."""

    boxes: NDArray[np.floating]
    labels: NDArray[np.integer]
    scores: NDArray[np.floating] | None = None
    masks: Sequence[NDArray[np.integer] | NDArray[np.bool_] | None] = ()
    is_crowd: NDArray[np.bool_] | None = None

    def chosen(self, places: NDArray[np.integer]) -> DrawnObjects:
        """Those at these places, in this order."""
        kept = places.tolist()
        return DrawnObjects(
            self.boxes[places],
            self.labels[places],
            None if self.scores is None else self.scores[places],
            [self.masks[at] for at in kept] if len(self.masks) else (),
            None if self.is_crowd is None else self.is_crowd[places],
        )


@dataclass(frozen=True)
class ObjectPrediction:
    """The objects found in an image, and those that are annotated (None: nobody knows)."""

    image: Image.Image
    found: DrawnObjects
    truth: DrawnObjects | None = None
    note: str = ""


@dataclass(frozen=True)
class AreaPrediction:
    """The classes of an image's pixels, shape (height, width); in the truth anything but 0..n-1 is ignored."""

    image: Image.Image
    found: NDArray[np.integer]
    truth: NDArray[np.integer] | None = None
    note: str = ""


Prediction = ClassPrediction | ObjectPrediction | AreaPrediction


@dataclass
class _Page:
    """The data that the cells of a page share."""

    classes: Sequence[str]
    seen: set[int] = field(default_factory=set)

    def name(self, label: int) -> str:
        return self.classes[label]


def predictions_sheet(
    samples: Sequence[Prediction], classes: Sequence[str], *, title: str, subtitle: str = ""
) -> Image.Image:
    """Predictions of one kind on a page, each with what is true of its image where that is known.

    Args:
        samples: at least one, all of one kind.
        classes: names by label.
        title, subtitle: headlines.
    """
    page = _Page(classes)
    if isinstance(samples[0], ClassPrediction):
        cells = [_class_cell(one, page) for one in samples if isinstance(one, ClassPrediction)]
        return contact_sheet(cells, _ROOM["classes"], columns=8, title=title, subtitle=subtitle)
    if isinstance(samples[0], ObjectPrediction):
        cells = [_object_cell(one, page) for one in samples if isinstance(one, ObjectPrediction)]
        known = any(isinstance(one, ObjectPrediction) and one.truth is not None for one in samples)
        how = f"dashed: missed · ✗: none of its class there (overlap below {IOU:.0%})" if known else ""
    else:
        cells = [_area_cell(one, page) for one in samples if isinstance(one, AreaPrediction)]
        known = any(isinstance(one, AreaPrediction) and one.truth is not None for one in samples)
        how = "errors: wrong pixels orange, pixels without a label blue" if known else ""
    room = max(cell.picture.width for cell in cells), max(cell.picture.height for cell in cells)
    return contact_sheet(
        cells,
        room,
        columns=max(1, _WIDTH // room[0]),
        title=title,
        subtitle=" · ".join(filter(None, (subtitle, how))),
        legend=_legend(page),
    )


def is_wrong(sample: Prediction) -> bool:
    """Whether a prediction differs from what is known to be true: another class, an object missed or made up, a pixel
    of another class."""
    if sample.truth is None:
        return False
    if isinstance(sample, ClassPrediction):
        return int(sample.probabilities.argmax()) != sample.truth
    if isinstance(sample, ObjectPrediction):
        found = _shown(sample.found)
        matches = _matched(found, sample.truth)
        return bool(matches.missed.any() or (~matches.right & ~matches.excused).any())
    return pixel_accuracy(sample) < 1.0


def pixel_accuracy(sample: AreaPrediction) -> float:
    """Share of the labelled pixels that are right; 1 where nothing is labelled."""
    if sample.truth is None:
        return 1.0
    labelled = _labelled(sample)
    return float((sample.found == sample.truth)[labelled].mean()) if labelled.any() else 1.0


def _class_cell(sample: ClassPrediction, page: _Page) -> Cell:
    best = int(sample.probabilities.argmax())
    said = f"{page.name(best)} · {sample.probabilities[best]:.0%}"
    picture = resized(sample.image, fit(sample.image.size, _ROOM["classes"]))
    if sample.truth is None:
        return Cell(picture, said, sample.note)
    if best == sample.truth:
        return Cell(picture, f"✓ {said}", sample.note)
    true = f"is {page.name(sample.truth)} ({sample.probabilities[sample.truth]:.0%})"
    return Cell(picture, f"✗ {said}", sample.note, true, WRONG, WRONG)


def _object_cell(sample: ObjectPrediction, page: _Page) -> Cell:
    scale = fit(sample.image.size, _ROOM["objects"])
    found = _shown(sample.found)
    if sample.truth is None:
        return Cell(_drawn_objects(sample.image, found, page, scale), _counted(found, page), sample.note)
    matches = _matched(found, sample.truth)
    missed = sample.truth.chosen(np.flatnonzero(matches.missed))
    panels = {
        "truth": _drawn_objects(sample.image, sample.truth, page, scale),
        "prediction": _drawn_objects(sample.image, found, page, scale, matches, missed),
    }
    crowds = 0 if sample.truth.is_crowd is None else int(sample.truth.is_crowd.sum())
    real, wrong = len(sample.truth.labels) - crowds, int((~matches.right & ~matches.excused).sum())
    words = [f"{int(matches.right.sum())} of {real} objects found", *([f"{wrong} wrong"] if wrong else [])]
    if not len(found.labels) and sample.found.scores is not None and len(sample.found.scores):
        words.append(f"the best score is {sample.found.scores.max():.0%}")
    mark = "" if wrong or matches.missed.any() else "✓ "
    return Cell(side_by_side(panels), mark + ", ".join(words), sample.note)


def _area_cell(sample: AreaPrediction, page: _Page) -> Cell:
    scale = fit(sample.image.size, _ROOM["areas"])
    panels = {"image": resized(sample.image, scale)}
    if sample.truth is not None:
        panels["truth"] = _drawn_areas(
            sample.image, np.where(_labelled(sample), sample.truth, -1), page, scale
        )
    panels["prediction"] = _drawn_areas(sample.image, sample.found, page, scale)
    if sample.truth is None:
        return Cell(side_by_side(panels), "", sample.note)
    panels["errors"] = _errors(sample, scale)
    words = f"{pixel_accuracy(sample):.1%} of the pixels right"
    overlaps = _class_overlaps(sample)
    if overlaps:
        worst = min(overlaps, key=lambda label: overlaps[label])
        words += f" · mean IoU {np.mean(list(overlaps.values())):.0%} · worst: {page.name(worst)} {overlaps[worst]:.0%}"
    return Cell(side_by_side(panels), words, sample.note)


def _shown(found: DrawnObjects) -> DrawnObjects:
    """Those with a score from `SURE` on, best first."""
    if found.scores is None:
        return found
    order = np.argsort(-found.scores, kind="stable")
    return found.chosen(order[found.scores[order] >= SURE])


def _matched(found: DrawnObjects, truth: DrawnObjects) -> Matches:
    crowds = np.zeros(len(truth.labels), np.bool_) if truth.is_crowd is None else truth.is_crowd
    return match_objects(found.boxes, found.labels, truth.boxes, truth.labels, crowds)


def _drawn_objects(
    image: Image.Image,
    objects: DrawnObjects,
    page: _Page,
    scale: float,
    matches: Matches | None = None,
    missed: DrawnObjects | None = None,
) -> Image.Image:
    names = []
    for place, label in enumerate(objects.labels.tolist()):
        mark = "✗ " if matches is not None and not (matches.right | matches.excused)[place] else ""
        score = "" if objects.scores is None else f" {objects.scores[place]:.0%}"
        crowd = " (crowd)" if objects.is_crowd is not None and objects.is_crowd[place] else ""
        names.append(f"{mark}{page.name(label)}{crowd}{score}")
    labels, boxes, dashed = objects.labels, objects.boxes, [False] * len(names)
    masks = list(objects.masks) if len(objects.masks) else [None] * len(names)
    if missed is not None:
        labels, boxes = np.concatenate([labels, missed.labels]), np.concatenate([boxes, missed.boxes])
        dashed += [True] * len(missed.labels)
        masks += [None] * len(missed.labels)
        names += [f"missed {page.name(label)}" for label in missed.labels.tolist()]
    page.seen.update(labels.tolist())
    colors = [class_color(label) for label in labels.tolist()]
    return draw_objects(image, boxes, names, colors, masks, dashed=dashed, scale=scale)


def _drawn_areas(image: Image.Image, labels: NDArray[np.integer], page: _Page, scale: float) -> Image.Image:
    present = np.unique(labels)
    page.seen.update(present[(present >= 0) & (present < len(page.classes))].tolist())
    colors = [class_color(label) for label in range(len(page.classes))]
    return draw_classes(image, labels.astype(np.int64), page.classes, colors, scale=scale)


def _errors(sample: AreaPrediction, scale: float) -> Image.Image:
    """The image without colours; what is wrong in one, what nobody labelled in another."""
    assert sample.truth is not None
    grey = sample.image.convert("L").convert("RGB")
    labelled = _labelled(sample)
    kinds = np.where(labelled, np.where(sample.found == sample.truth, 2, 0), 1)
    return draw_classes(grey, kinds, ("", ""), (WRONG, ACCENT), scale=scale, opacity=0.75)


def _labelled(sample: AreaPrediction) -> NDArray[np.bool_]:
    assert sample.truth is not None
    # 255 stands for ignored in the tasks, anything negative elsewhere.
    return (sample.truth >= 0) & (sample.truth != 255)


def _class_overlaps(sample: AreaPrediction) -> dict[int, float]:
    """Intersection over union of each class that is annotated or found in labelled pixels."""
    assert sample.truth is not None
    labelled = _labelled(sample)
    found, truth = sample.found[labelled], sample.truth[labelled]
    overlaps = {}
    for label in np.union1d(found, truth).tolist():
        both = int(((found == label) & (truth == label)).sum())
        overlaps[int(label)] = both / int(((found == label) | (truth == label)).sum())
    return overlaps


def _counted(objects: DrawnObjects, page: _Page) -> str:
    labels, counts = np.unique(objects.labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_MOST_NAMED].tolist()
    return ", ".join(f"{counts[at]} {page.name(int(labels[at]))}" for at in order) or "no objects"


def _legend(page: _Page) -> list[tuple[str, Color]]:
    entries = [(page.name(label), class_color(label)) for label in sorted(page.seen)]
    more = [(f"and {len(entries) - _LEGEND} more", FAINT)] if len(entries) > _LEGEND else []
    return entries[:_LEGEND] + more
