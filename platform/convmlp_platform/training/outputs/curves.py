"""The run's curves as one picture, of a few hundred points each however long the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from convmlp_platform.tracking.journal_digest import MetricSeries

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


def plot_curves(series: Mapping[str, MetricSeries], path: Path) -> Path:
    """Draw what was logged over steps into a PNG at `path`; returns it. Of a long series the means of neighbouring
    points are drawn, and their range as a band."""
    from matplotlib.figure import Figure

    panels = _PANELS | {_HELD_OUT: scores_in(series)}
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name in names:
            if name not in series or not (buckets := series[name].buckets):
                continue
            steps = [bucket.last for bucket in buckets]
            marker = "." if len(buckets) < 40 else ""
            (line,) = axes.plot(steps, [bucket.mean for bucket in buckets], label=name, marker=marker)
            if not series[name].is_exact:
                lows, highs = [bucket.low for bucket in buckets], [bucket.high for bucket in buckets]
                axes.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def scores_in(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the evaluation's scores that are drawn, of the names of all that was logged."""
    found = {name for name in names if name.startswith("eval/")} - {"eval/loss"}
    return tuple(name for name in _SCORES if name in found) or tuple(sorted(found))
