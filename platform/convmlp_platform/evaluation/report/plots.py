"""An evaluation's plots: the confusion matrix, scores by class, accuracy on permuted pixels, images per second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convmlp_platform.evaluation.findings import Counts
from convmlp_platform.evaluation.report.table import MEASURES
from convmlp_platform.evaluation.result import ClassScore, EvaluationResult, Throughput
from convmlp_platform.pictures.charts import ALL_NAMED, bars, curve, plain, save_figure, short
from convmlp_platform.pictures.style import ACCENT, FAINT, INK, hex_color

_NUMBERED = 24
"""Up to so many classes each cell of the matrix has its number."""
_EXTREMES = 15


def confusion_plot(counts: Counts, classes: Sequence[str], path: Path, *, title: str, unit: str) -> Path:
    """A PNG of the share of each true class (row) that was taken for each class (column); returns `path`.

    Up to 40 classes have their names on the axes; up to 24 each cell its share, the diagonal included.
    """
    from matplotlib.figure import Figure

    number = len(classes)
    named = number <= ALL_NAMED
    side = 2.6 + 0.46 * number if number <= _NUMBERED else (11.5 if named else 9.0)
    figure = Figure(figsize=(side + 0.9, side), layout="constrained")
    axes = figure.subplots()
    totals = counts.sum(1, keepdims=True)
    shares = np.where(totals, 100.0 * counts / np.maximum(totals, 1), np.nan)
    # Errors are rare: a linear scale would show a diagonal and nothing else.
    image = axes.imshow(shares, cmap="Blues", norm=_gamma(), interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label(f"% of the {unit} of the true class", fontsize=9, color=hex_color(FAINT))
    if named:
        axes.set_xticks(
            range(number), [short(name) for name in classes], rotation=_turned(classes), fontsize=8
        )
        axes.set_yticks(range(number), [short(name) for name in classes], fontsize=8)
    if number <= _NUMBERED:
        for row, column in np.argwhere(np.nan_to_num(shares) >= 0.05).tolist():
            value = shares[row, column]
            color = "white" if value > 40 else hex_color(INK)
            text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
    axes.set_xlabel("said" if named else "said: number of the class", fontsize=9.5, color=hex_color(FAINT))
    axes.set_ylabel("true" if named else "true: number of the class", fontsize=9.5, color=hex_color(FAINT))
    axes.tick_params(length=0)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=hex_color(INK))
    return save_figure(figure, path)


def class_plot(scores: Sequence[ClassScore], measure: str, path: Path, *, title: str, unit: str) -> Path:
    """A PNG of one score of each class, worst last; of more than 40 classes the curve, and by name the best and the
    worst; returns `path`."""
    from matplotlib.figure import Figure

    known = [one for one in scores if one.scores.get(measure) is not None]
    order = sorted(known, key=lambda one: -_value(one, measure))
    if len(order) <= ALL_NAMED:
        figure = Figure(figsize=(8, 1.3 + 0.28 * max(len(order), 1)), layout="constrained")
        _bars(figure.subplots(), order, measure, unit)
    else:
        figure = Figure(figsize=(11, 8), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.4))
        axes, values = figure.add_subplot(grid[0, :]), [_value(one, measure) for one in order]
        mean = float(np.mean(values))
        note, sorting = f"mean {mean:.1f}", "class, from the best to the worst"
        curve(axes, values, mean, note, sorting, _per_cent(measure))
        axes.set_ylim(0, 105)
        for column, (chosen, heading) in enumerate(
            ((order[:_EXTREMES], "best"), (order[-_EXTREMES:], "worst"))
        ):
            axes = figure.add_subplot(grid[1, column])
            _bars(axes, chosen, measure, unit)
            axes.set_title(f"the {_EXTREMES} {heading}", loc="left", fontsize=10, color=hex_color(INK))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=hex_color(INK))
    return save_figure(figure, path)


def permutation_plot(result: EvaluationResult, measure: str, path: Path) -> Path:
    """A PNG of accuracy on images as the model was trained on and on permuted ones; returns `path`."""
    from matplotlib.figure import Figure

    assert result.permutation is not None
    size = result.permutation.patch_size
    names = {
        "patches": f"patches of {size} px, and\nthe pixels in each, shuffled",
        "pixels": "all pixels shuffled",
    }
    rows = [("as in training", result.metrics[measure])]
    rows += [(names[one.kind], one.metrics[measure]) for one in result.permutation.rows]
    figure = Figure(figsize=(7.5, 1.5 + 0.62 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    colors = [hex_color(ACCENT), *["#9db8d9"] * (len(rows) - 1)]
    axes.barh(places, [value for _, value in rows], color=colors, height=0.62)
    axes.set_yticks(places, [name for name, _ in rows], fontsize=9)
    axes.invert_yaxis()
    chance = 100.0 / result.model.num_classes
    axes.axvline(
        chance, color=hex_color(INK), linestyle=(0, (4, 3)), linewidth=0.9, label=f"chance, {chance:.2g} %"
    )
    for place, (_, value) in enumerate(rows):
        axes.text(
            max(value, chance) + 1, place, f"{value:.1f} %", va="center", fontsize=9, color=hex_color(INK)
        )
    axes.set_xlim(0, 112)
    plain(axes, _per_cent(measure), "x")
    axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    figure.suptitle(
        f"{result.model.name}: pixels in another order", x=0.01, ha="left", fontsize=11, fontweight="bold"
    )
    return save_figure(figure, path)


def throughput_plot(throughput: Throughput, path: Path, *, title: str) -> Path:
    """A PNG of images per second over batch sizes, with the middle half of the batches' times; returns `path`."""
    from matplotlib.figure import Figure

    rows = sorted(throughput.rows, key=lambda row: row.batch_size)
    sizes = [row.batch_size for row in rows]
    middle = [row.images_per_second for row in rows]
    low = [row.batch_size / row.high_seconds for row in rows]
    high = [row.batch_size / row.low_seconds for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(
        sizes, low, high, color=hex_color(ACCENT), alpha=0.2, linewidth=0, label="middle half of the batches"
    )
    axes.plot(sizes, middle, marker="o", color=hex_color(ACCENT), label="median")
    for size, value in zip(sizes, middle, strict=True):
        axes.annotate(
            f"{value:,.0f}", (size, value), (0, 7), textcoords="offset points", ha="center", fontsize=8.5
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(0, 1.15 * max(high))
    axes.set_xlabel("images a batch", fontsize=9, color=hex_color(FAINT))
    axes.set_ylabel("images per second", fontsize=9, color=hex_color(FAINT))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=hex_color(INK))
    return save_figure(figure, path)


def _bars(axes: Any, chosen: Sequence[ClassScore], measure: str, unit: str) -> None:
    values = [_value(one, measure) for one in chosen]
    texts = [f"{value:.1f} %  ({one.count:,} {unit})" for value, one in zip(values, chosen, strict=True)]
    bars(axes, values, [one.name for one in chosen], texts, _per_cent(measure), 135)
    axes.set_xticks([0, 25, 50, 75, 100])


def _per_cent(measure: str) -> str:
    return f"{MEASURES.get(measure, measure)} (%)"


def _value(one: ClassScore, measure: str) -> float:
    value = one.scores[measure]
    return 0.0 if value is None else value


def _turned(names: Sequence[str]) -> int:
    return 0 if max(map(len, names)) <= 3 else 90


def _gamma() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.4, vmin=0, vmax=100)
