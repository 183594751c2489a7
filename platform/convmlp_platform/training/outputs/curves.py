"""The run's curves as one picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

Curve = Sequence[tuple[int, Mapping[str, float]]]
_HELD_OUT = "held-out images (%)"
_PANELS = {
    "loss": ("train/loss", "eval/loss"),
    _HELD_OUT: (),
    "learning rate": ("train/lr",),
    "images per second": ("train/images_per_second",),
}
# Of each task's metrics, those that people look at; an unknown task's are all drawn.
_SCORES = (
    *("eval/top1", "eval/top5"),
    *("eval/box_ap", "eval/box_ap50", "eval/mask_ap", "eval/mask_ap50"),
    *("eval/miou", "eval/pixel_accuracy"),
)


def plot_curves(curves: Curve, path: Path) -> Path:
    """Draw what was logged (step, metrics) over steps into a PNG at `path`; returns it."""
    from matplotlib.figure import Figure

    panels = _PANELS | {_HELD_OUT: scores_in(metrics for _, metrics in curves)}
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name in names:
            points = [(step, metrics[name]) for step, metrics in curves if name in metrics]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else "")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def scores_in(logged: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    """Names of the evaluation's scores that are drawn of all that was logged."""
    found = {name for metrics in logged for name in metrics if name.startswith("eval/")} - {"eval/loss"}
    return tuple(name for name in _SCORES if name in found) or tuple(sorted(found))
