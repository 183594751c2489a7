"""How many samples each class has, as a chart that is legible with ten classes and with thousands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.pictures.style import ACCENT, FAINT, INK

_ALL_NAMED = 40
"""Up to so many classes each has a bar with its name."""
_EXTREMES = 12
"""Of more classes, so many of the largest and of the smallest are named."""
_LONGEST_NAME = 28


def class_histogram(
    counts: NDArray[np.integer], names: Sequence[str], *, title: str, subtitle: str = "", unit: str = "images"
) -> Any:
    """A matplotlib Figure of `counts`, shape (classes,), by class name.

    Up to 40 classes: a bar each, in the order of the labels. More: all counts from large to small, and below
    it the largest and the smallest classes by name.
    """
    from matplotlib.figure import Figure

    if len(names) <= _ALL_NAMED:
        figure = Figure(figsize=(8, 1.5 + 0.3 * len(names)), layout="constrained")
        _bars(figure.subplots(), counts, names, unit)
    else:
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.15))
        order = np.argsort(-counts, kind="stable")
        _curve(figure.add_subplot(grid[0, :]), counts[order], unit)
        for column, (chosen, heading) in enumerate(_extremes(order, counts)):
            axes = figure.add_subplot(grid[1, column])
            _bars(axes, counts[chosen], [names[i] for i in chosen], unit)
            axes.set_title(heading, loc="left", fontsize=10, color=_hex(INK))
    _headline(figure, title, subtitle)
    return figure


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, facecolor="white")
    return path


def _headline(figure: Any, title: str, subtitle: str) -> None:
    inch, left = 1 / figure.get_figheight(), 0.15 / figure.get_figwidth()
    figure.text(left, 1 - 0.16 * inch, title, fontsize=14, fontweight="bold", color=_hex(INK), va="top")
    figure.text(left, 1 - 0.47 * inch, subtitle, fontsize=9.5, color=_hex(FAINT), va="top")
    bottom = 0.08 * inch
    figure.get_layout_engine().set(rect=(left, bottom, 1 - 2 * left, 1 - 0.75 * inch - bottom))


def _extremes(
    order: NDArray[np.integer], counts: NDArray[np.integer]
) -> list[tuple[NDArray[np.integer], str]]:
    number = min(_EXTREMES, len(order) // 2)
    if counts.min() == counts.max():
        return [(order[:number], f"the first {number} classes"), (order[-number:], f"the last {number}")]
    return [(order[:number], f"the {number} largest classes"), (order[-number:], f"the {number} smallest")]


def _bars(axes: Any, counts: NDArray[np.integer], names: Sequence[str], unit: str) -> None:
    places = np.arange(len(names))
    axes.barh(places, counts, color=_hex(ACCENT), height=0.72)
    axes.set_yticks(places, [_short(name) for name in names], fontsize=9)
    axes.invert_yaxis()
    top = max(int(counts.max(initial=0)), 1)
    for place, count in zip(places, counts.tolist(), strict=True):
        axes.text(count + 0.012 * top, place, f"{count:,}", va="center", fontsize=8.5, color=_hex(FAINT))
    axes.set_xlim(0, 1.12 * top)
    _plain(axes, unit, "x")


def _curve(axes: Any, counts: NDArray[np.integer], unit: str) -> None:
    ranks = np.arange(1, len(counts) + 1)
    axes.fill_between(ranks, counts, step="mid", color=_hex(ACCENT), alpha=0.25, linewidth=0)
    axes.step(ranks, counts, where="mid", color=_hex(ACCENT), linewidth=1.5)
    top, median = int(counts.max(initial=0)), float(np.median(counts))
    if counts.min() == top:
        note = f"every class has {top:,} {unit}"
    else:
        axes.axhline(median, color=_hex(FAINT), linewidth=0.9, linestyle=(0, (4, 3)))
        note = f"median {median:,.0f}"
    axes.annotate(
        note,
        (len(counts), median),
        (0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=_hex(INK),
    )
    axes.set_xlim(0.5, len(counts) + 0.5)
    if median > 0 and top > 30 * median:
        axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 1.15 * max(top, 1))
    axes.set_xlabel("class, from the largest to the smallest", fontsize=9, color=_hex(FAINT))
    _plain(axes, unit, "y")


def _plain(axes: Any, unit: str, along: str) -> None:
    """Only what carries meaning: a light grid along the values, no frame."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.spines[["top", "right", "bottom" if along == "x" else "left"]].set_visible(False)
    axes.spines[["left" if along == "x" else "bottom"]].set_color(_hex(FAINT))
    axes.grid(axis=along, alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_hex(INK), labelsize=9)
    values = axes.xaxis if along == "x" else axes.yaxis
    if axes.get_yscale() == "linear":
        values.set_major_locator(MaxNLocator(nbins=6, integer=True))
    values.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    getattr(axes, f"set_{along}label")(unit, fontsize=9, color=_hex(FAINT))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1].rstrip()}…"


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
