"""The run's curves as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Curve = Sequence[tuple[int, dict[str, float]]]
PANELS = {
    "loss": ("train/loss", "eval/loss"),
    "accuracy (%)": ("eval/top1", "eval/top5"),
    "learning rate": ("train/lr",),
    "images per second": ("train/images_per_second",),
}


def plot_curves(curves: Curve, path: Path) -> Path:
    """Draw what was logged (step, metrics) over steps into a PNG at `path`; returns it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
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
