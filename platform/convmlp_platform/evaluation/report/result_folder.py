"""The folder of a result: its files, written beside its place and then put there whole; what stood there is never lost
unsent.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.sections.task_section import BEST_METRICS
from convmlp_platform.errors import DataError
from convmlp_platform.evaluation.findings import Counts, EvaluationFindings, Samples
from convmlp_platform.evaluation.report.plots import (
    class_plot,
    confusion_plot,
    permutation_plot,
    throughput_plot,
)
from convmlp_platform.evaluation.report.table import markdown
from convmlp_platform.evaluation.result import RESULT_NAME, TABLE_NAME, EvaluationResult, read_result
from convmlp_platform.pictures.predictions import predictions_sheet
from convmlp_platform.tracking.finished_work import sent_to
from data_prep.storage.files import sync_folder


@contextlib.contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A new folder beside `parent / name`, which takes that name at the end of the block; of a block that fails nothing
    remains. What `put_aside` kept of an earlier evaluation is still there then.

    Raises:
        DataError: the folder can't be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    except OSError as error:
        raise DataError(f"output.path: {parent} can't be written: {error.strerror or error}") from None
    try:
        yield new
        for file in new.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        sync_folder(new)
        new.chmod(0o755)
        _replace(parent / name, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(final: Path, new: Path) -> None:
    aside = None
    if final.exists():
        # Sent to MLflow, it is there for good; otherwise its own folder keeps it until somebody sends it.
        aside = _free_name(final) if sent_to(final) is None else new.with_name(f"{new.name}-old")
        final.rename(aside)
    new.rename(final)
    sync_folder(final.parent)
    if aside is not None and aside.name.startswith("."):
        shutil.rmtree(aside, ignore_errors=True)


def _free_name(final: Path) -> Path:
    """`NAME-20261121-174502` of the old result's date."""
    try:
        date = read_result(final).date
        stamp = "".join(letter for letter in date[:19] if letter.isdigit())
        base = f"{final.name}-{stamp[:8]}-{stamp[8:]}"
    except DataError:
        base = f"{final.name}-old"
    name, number = base, 1
    while (final.parent / name).exists():
        number += 1
        name = f"{base}-{number}"
    return final.parent / name


def write_result(
    job: EvaluateJob,
    result: EvaluationResult,
    findings: EvaluationFindings,
    samples: Samples | None,
    classes: Sequence[str],
    folder: Path,
) -> EvaluationResult:
    """Write plots, tables and, last, `result.json`; returns the result with the files' names."""
    title = f"{result.model.name} on {result.dataset.name} {result.dataset.split}"
    if job.evaluate.confusion and findings.confusion is not None:
        confusion_plot(findings.confusion, classes, folder / "confusion.png", title=title, unit=findings.unit)
        _write_confusion(findings.confusion, classes, folder)
    if result.per_class:
        for measure in result.per_class[0].scores:
            name = f"per_class_{measure}.png"
            class_plot(result.per_class, measure, folder / name, title=title, unit=findings.unit)
    if result.permutation is not None:
        permutation_plot(result, "top1", folder / "permutation.png")
    if result.throughput is not None and len(result.throughput.rows) > 1:
        how = f"{title.split(' on ')[0]}, {result.throughput.precision}, {result.hardware.name}"
        throughput_plot(result.throughput, folder / "throughput.png", title=how)
    if samples is not None:
        _write_samples(result, samples, classes, folder)
    (folder / TABLE_NAME).write_text(markdown(result), encoding="utf-8")
    files = sorted([*(path.name for path in folder.iterdir()), RESULT_NAME])
    result = result.model_copy(update={"artifacts": files})
    (folder / RESULT_NAME).write_text(json.dumps(result.model_dump(mode="json"), indent=2) + "\n")
    return result


def _write_confusion(counts: Counts, classes: Sequence[str], folder: Path) -> None:
    """Whole, for programs; and for people the pairs that occur, the most frequent mistake first."""
    np.savez_compressed(folder / "confusion.npz", counts=counts, classes=np.array(classes))
    rows, columns = np.nonzero(counts)
    order = np.lexsort((columns, rows, -counts[rows, columns], rows == columns))
    with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["true", "said", "count"])
        for place in order.tolist():
            row, column = int(rows[place]), int(columns[place])
            table.writerow([classes[row], classes[column], int(counts[row, column])])


def _write_samples(result: EvaluationResult, samples: Samples, classes: Sequence[str], folder: Path) -> None:
    metric = BEST_METRICS[result.task]
    title = f"{result.model.name} on {result.dataset.name} {result.dataset.split}"
    told = f"{result.model.pinned} · {metric} {result.metrics[metric]:.2f} %"
    sheet = predictions_sheet(samples.spread, classes, title=title, subtitle=told)
    sheet.save(folder / "predictions.png")
    if mistakes := samples.mistakes():
        heading = f"{title}: the surest mistakes"
        predictions_sheet(mistakes, classes, title=heading, subtitle=told).save(folder / "mistakes.png")
