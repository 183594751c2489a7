"""A comparison as text: columns for a terminal, Markdown, and points for the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convmlp_platform.evaluation.compare.compared import Compared
from convmlp_platform.evaluation.report.table import LABELS, giga, millions
from data_prep.console import duration

Rows = list[list[str]]
NOTHING = "-"


def columns(lines: Sequence[Compared], metric: str) -> dict[str, Callable[[Compared], str]]:
    """Column → a line's text in it; only columns in which some line has something."""
    others = sorted({name for line in lines for name in line.metrics} - {metric, "loss"})
    shown: dict[str, Callable[[Compared], str]] = {
        "": lambda line: line.label,
        "model": lambda line: line.model,
        label_of(metric): lambda line: _score(line.metrics, metric),
    }
    if any(line.last for line in lines):
        shown["last"] = lambda line: _score(line.last, metric)
    for name in others[:3]:
        shown[label_of(name)] = lambda line, name=name: _score(line.metrics, name)  # type: ignore[misc]
    shown |= {
        "parameters": lambda line: _millions(line.parameters) + ("*" if "parameters" in line.counted else ""),
        "MACs": lambda line: _work(line.macs) + ("*" if "macs" in line.counted else ""),
        "px": lambda line: NOTHING if line.image_size is None else str(line.image_size),
        "train img/s": lambda line: _rate(line.images_per_second),
        "forward img/s": lambda line: _rate(line.forward_per_second),
        "epochs": lambda line: NOTHING if line.epochs is None else f"{line.epochs:.4g}",
        "time": lambda line: NOTHING if line.seconds is None else duration(line.seconds),
        "dataset": lambda line: _dataset(line),
    }
    return {name: cell for name, cell in shown.items() if any(cell(line) != NOTHING for line in lines)}


def rows(lines: Sequence[Compared], metric: str) -> Rows:
    """The heading and a row for each line."""
    shown = columns(lines, metric)
    return [list(shown), *([cell(line) for cell in shown.values()] for line in lines)]


def text_table(table: Rows) -> list[str]:
    """Aligned for a terminal: words to the left, figures to the right."""
    widths = [max(len(row[number]) for row in table) for number in range(len(table[0]))]
    right = [_is_figure(column) for column in zip(*table[1:], strict=True)] or [False] * len(widths)
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in table
    ]


def markdown_table(table: Rows) -> list[str]:
    """For table.md."""
    right = [_is_figure(column) for column in zip(*table[1:], strict=True)] or [False] * len(table[0])
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table]
    marks = ["---:" if to_right else "---" for to_right in right]
    return [f"| {' | '.join(row)} |" for row in (cells[0], marks, *cells[1:])]


def plot(lines: Sequence[Compared], metric: str, path: Path, *, title: str, subtitle: str) -> Path | None:
    """Draw the metric against parameters and MACs into `path`; None where no line has all that it takes.

    Raises:
        OSError, ValueError: it can't be written, or matplotlib knows no such format.
    """
    from convmlp_platform.pictures.charts import Point, save_figure, trade_off

    points = [
        Point(line.label, line.family, line.metrics[metric], line.parameters, line.macs)
        for line in lines
        if metric in line.metrics and (line.parameters or line.macs)
    ]
    if not points:
        return None
    unit = "" if metric == "loss" else " (%)"
    return save_figure(trade_off(points, f"{label_of(metric)}{unit}", title=title, subtitle=subtitle), path)


def about(lines: Sequence[Compared]) -> str:
    """For the picture: which images, of which size."""
    datasets = sorted({f"{line.dataset} {line.split or ''}".strip() for line in lines if line.dataset})
    sizes = sorted({line.image_size for line in lines if line.image_size is not None})
    size = f", {sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "") + " px" if sizes else ""
    return ", ".join(datasets) + size


def label_of(metric: str) -> str:
    """A metric's name for people."""
    return LABELS.get(metric, metric.replace("_", " "))


def _score(values: Mapping[str, Any], metric: str) -> str:
    if metric not in values:
        return NOTHING
    return f"{values[metric]:.4f}" if metric == "loss" else f"{values[metric]:.2f}"


def _millions(count: int | None) -> str:
    return NOTHING if count is None else millions(count)


def _work(macs: int | None) -> str:
    return NOTHING if macs is None else giga(macs)


def _rate(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _dataset(line: Compared) -> str:
    if line.dataset is None:
        return NOTHING
    digest = (line.digest or "").removeprefix("sha256:")[:8]
    return " ".join(filter(None, [line.dataset, line.split, digest]))


def _is_figure(column: Sequence[str]) -> bool:
    return all(cell == NOTHING or cell[:1].isdigit() or cell[:1] == "-" for cell in column)
