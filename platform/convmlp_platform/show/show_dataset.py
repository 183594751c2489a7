"""A look at a prepared dataset: a contact sheet and a class histogram of a split, and its figures in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.dataset.sample_view import ROOM, ClassCounts, SplitView
from convmlp_platform.errors import DataError
from convmlp_platform.pictures.charts import class_histogram, save_figure
from convmlp_platform.pictures.contact_sheet import contact_sheet
from convmlp_platform.pictures.style import FAINT, Color
from data_prep.annotations.object_report import ODD_OBJECTS_NAME, describe, objects_of
from data_prep.console import some_of
from data_prep.dataset.manifest import DatasetManifest

_COLUMNS = {"classification": 6, "detection": 3, "segmentation": 3}
_COUNT = {"classification": 36, "detection": 12, "segmentation": 12}
_LEGEND = 60


@dataclass(frozen=True)
class Shown:
    """The pictures that were written, and what was found, line by line."""

    sheet: Path
    histogram: Path
    lines: list[str]


def show(
    path: str,
    output: Path,
    *,
    split: str | None = None,
    count: int | None = None,
    seed: int = 0,
    labels: Sequence[str] = (),
) -> Shown:
    """Draw `<dataset>-<split>-sheet.png` and `<dataset>-<split>-classes.png` into the folder `output`.

    Args:
        path: the dataset's folder or URL.
        output: made where it is missing.
        split: default train, or the dataset's first.
        count: pictures on the sheet; default 36, or 12 with boxes or masks.
        seed: draws which samples are shown.
        labels: names of classes: only samples that hold one of them are shown.

    Raises:
        DataError: no dataset there, no such split or class, a damaged sample, or `output` can't be written.
    """
    view = SplitView(path, split)
    chosen = _choose(view, _label_numbers(labels, view.manifest), count or _COUNT[view.task], seed)
    drawn = [view.cell(sample) for sample in chosen]
    holding = f" with {' or '.join(labels)}" if labels else ""
    sheet = contact_sheet(
        [cell for cell, _ in drawn],
        ROOM[view.task],
        columns=_COLUMNS[view.task],
        title=view.title,
        subtitle=f"{len(drawn):,} of {len(view.split):,} images{holding} · {view.manifest.num_classes:,} classes "
        f"· seed {seed}",
        legend=_legend(view, set[int]().union(*(present for _, present in drawn))),
    )
    found = view.class_counts()
    figure = class_histogram(
        found.counts,
        view.manifest.classes,
        title=view.title,
        subtitle=" · ".join(filter(None, [f"{len(view.split):,} images", found.words, found.remark])),
        unit=found.unit,
    )
    stem = output / f"{view.manifest.name}-{view.name}"
    shown = Shown(Path(f"{stem}-sheet.png"), Path(f"{stem}-classes.png"), _lines(view, found))
    try:
        output.mkdir(parents=True, exist_ok=True)
        sheet.save(shown.sheet)
        save_figure(figure, shown.histogram)
    except OSError as error:
        raise DataError(f"can't write pictures into {output}: {error.strerror or error}") from None
    return shown


def _label_numbers(labels: Sequence[str], manifest: DatasetManifest) -> set[int]:
    numbers = {name: number for number, name in enumerate(manifest.classes)}
    for label in labels:
        if label not in numbers:
            near = get_close_matches(label, manifest.classes, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {some_of(manifest.classes, 10)}"
            raise DataError(f"--labels: dataset {manifest.name} has no class {label!r}; {hint}")
    return {numbers[label] for label in labels}


def _choose(view: SplitView, wanted: set[int], count: int, seed: int) -> list[int]:
    """Samples drawn without replacement, those of a class side by side; all of them where there are fewer."""
    order = np.random.default_rng(seed).permutation(len(view.split))
    if view.task == "classification":
        label = view.columns.label
        if wanted:
            order = order[np.isin(label[order], sorted(wanted))]
        chosen = sorted(order[:count].tolist(), key=lambda sample: (int(label[sample]), sample))
    else:
        chosen = [sample for sample, _ in zip(_holding(view, order, wanted), range(count), strict=False)]
    if not chosen:
        raise DataError(f"--labels: no image of {view.title} holds one of these classes")
    return chosen


def _holding(view: SplitView, order: NDArray[np.int64], wanted: set[int]) -> Iterator[int]:
    for sample in order.tolist():
        if not wanted or wanted & set(view.labels_in(sample).tolist()):
            yield sample


def _legend(view: SplitView, seen: set[int]) -> list[tuple[str, Color]]:
    if view.task == "classification":
        return []
    entries = [(view.manifest.classes[label], view.colors[label]) for label in sorted(seen)]
    more = [(f"and {len(entries) - _LEGEND} more", FAINT)] if len(entries) > _LEGEND else []
    return entries[:_LEGEND] + more


def _lines(view: SplitView, found: ClassCounts) -> list[str]:
    manifest, counts = view.manifest, found.counts
    rejected = manifest.preprocessing.get("num_rejected", 0)
    lines = [
        f"{view.title}: {len(view.split):,} images for {manifest.task}, as {' and '.join(manifest.formats)}, "
        f"{manifest.digest[:19]}…",
        f"  classes   {len(counts):,}; {found.words}" + (f" ({found.remark})" if found.remark else ""),
    ]
    if counts.min() != counts.max():
        first, last = int(counts.argmax()), int(counts.argmin())
        empty = int((counts == 0).sum())
        lines.append(
            f"            largest {manifest.classes[first]} ({counts[first]:,}), "
            f"smallest {manifest.classes[last]} ({counts[last]:,})"
            + (f"; {empty:,} classes don't occur" if empty > 1 else "")
        )
    lines.append(f"  sizes     {_sizes(view)}")
    lines += [f"  note      {note}" for note in manifest.preprocessing.get("notes", [])]
    if objects := objects_of(manifest):
        lines.append(
            f"  objects   {describe(objects)}" + (f", see {ODD_OBJECTS_NAME}" if objects.has_odd else "")
        )
    if rejected:
        lines.append(f"  rejected  {rejected:,} images of the source, see rejected.jsonl")
    return lines


def _sizes(view: SplitView) -> str:
    heights, widths = view.columns.height, view.columns.width
    if heights.min() == heights.max() and widths.min() == widths.max():
        return f"all {widths[0]:,} x {heights[0]:,} pixels"
    each = (
        f"{name} {sides.min():,} to {sides.max():,} (median {np.median(sides):,.0f})"
        for name, sides in (("width", widths), ("height", heights))
    )
    return f"{', '.join(each)} pixels"
