"""All files of a result into one folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.sections.task_section import BEST_METRICS
from convmlp_platform.evaluation.findings import Counts, EvaluationFindings
from convmlp_platform.evaluation.report.plots import (
    class_plot,
    confusion_plot,
    permutation_plot,
    throughput_plot,
)
from convmlp_platform.evaluation.report.samples import Samples
from convmlp_platform.evaluation.report.table import markdown
from convmlp_platform.evaluation.result import RESULT_NAME, TABLE_NAME, EvaluationResult
from convmlp_platform.pictures.predictions import predictions_sheet


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
