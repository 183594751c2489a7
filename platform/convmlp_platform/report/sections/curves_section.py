"""Loss, metrics, learning rate and throughput over steps, each a chart and a table."""

from __future__ import annotations

from collections.abc import Sequence

from convmlp_platform.evaluation.report.table import LABELS
from convmlp_platform.report.blocks import Block, Drawing, GridTable, Sentence, ends_of
from convmlp_platform.report.reported_run import ReportedRun
from convmlp_platform.report.svg_charts import ChartLine, line_chart, plain_number
from convmlp_platform.tracking.journal_digest import JournalDigest, MetricSeries
from convmlp_platform.training.outputs.curves import scores_in

_ROWS = 24
"""Of a curve's table."""
_WEIGHTS = {"eval": "", "eval_average": ", averaged weights", "eval_plain": ", plain weights"}
_TRAINING = {
    "train/loss": "training loss",
    "train/lr": "learning rate",
    "train/images_per_second": "images per second",
    "train/grad_norm": "gradient norm",
}


def curves(facts: ReportedRun) -> list[Block]:
    """The charts; one that has no points is left out."""
    digest = facts.digest
    if not any(name.startswith(("train/", "eval")) for name in digest.series):
        return [Sentence("No metrics are on record: the run ended before it logged any.")]
    losses = ["train/loss", *_of_weights(digest, ["loss"])]
    scores = scores_in(digest.series)
    judged = _of_weights(digest, [name.removeprefix("eval/") for name in scores])
    charts = [
        _chart(digest, losses, "Loss", "loss"),
        *(_chart(digest, some, "Scores on held-out images", "per cent") for some in _pieces(judged)),
        _chart(digest, ["train/lr"], "Learning rate", "learning rate"),
        _chart(digest, ["train/images_per_second"], "Throughput", "images per second"),
        _chart(digest, ["train/grad_norm"], "Gradient norm", "norm, mean of the steps between two lines"),
    ]
    return [*_not_finite(digest), *(chart for chart in charts if chart is not None)]


def _of_weights(digest: JournalDigest, names: Sequence[str]) -> list[str]:
    """The metrics of held-out images, of whichever weights were judged. Where both always were, those of the taken
    weights are one of them, and left out."""
    found = [f"{prefix}/{name}" for name in names for prefix in _WEIGHTS]
    known = [name for name in found if name in digest.series]
    return [name for name in known if not _is_one_of_both(digest, name)]


def _is_one_of_both(digest: JournalDigest, name: str) -> bool:
    prefix, _, metric = name.partition("/")
    both = [digest.series.get(f"{one}/{metric}") for one in _WEIGHTS if one != "eval"]
    if prefix != "eval" or None in both:
        return False
    steps = [bucket.last for bucket in digest.series[name].buckets]
    return all(one is not None and [bucket.last for bucket in one.buckets] == steps for one in both)


def _pieces(names: Sequence[str]) -> list[Sequence[str]]:
    """At most six curves a chart."""
    return [names[start : start + 6] for start in range(0, len(names), 6)]


def metric_label(name: str) -> str:
    """`eval_average/top1` → `top-1, averaged weights`."""
    if name in _TRAINING:
        return _TRAINING[name]
    prefix, _, metric = name.partition("/")
    if prefix not in _WEIGHTS:
        return name
    shown = "held-out loss" if metric == "loss" else LABELS.get(metric, metric.replace("_", " "))
    return shown + _WEIGHTS[prefix]


def _chart(digest: JournalDigest, names: Sequence[str], title: str, y_label: str) -> Drawing | None:
    known = [(name, digest.series[name]) for name in names if name in digest.series]
    known = [(name, series) for name, series in known if series.buckets]
    if not known:
        return None
    svg = line_chart([_line(name, series) for name, series in known], title=title, y_label=y_label)
    caption = title
    if not all(series.is_exact for _, series in known):
        caption += ": means of neighbouring points; the band is their range"
    return Drawing(svg, caption, _table(title, known))


def _line(name: str, series: MetricSeries) -> ChartLine:
    points = [(float(bucket.last), bucket.mean) for bucket in series.buckets]
    band = [(float(bucket.last), bucket.low, bucket.high) for bucket in series.buckets]
    return ChartLine(metric_label(name), points, () if series.is_exact else band)


def _table(title: str, known: Sequence[tuple[str, MetricSeries]]) -> GridTable:
    by_step: dict[int, dict[str, float]] = {}
    for name, series in known:
        for bucket in series.buckets:
            by_step.setdefault(bucket.last, {})[name] = bucket.mean
    steps = sorted(by_step)
    if len(steps) > _ROWS:
        last = len(steps) - 1
        steps = sorted({steps[round(place * last / (_ROWS - 1))] for place in range(_ROWS)})
    rows = [
        [f"{step:,}", *(plain_number(by_step[step][name]) if name in by_step[step] else "" for name, _ in known)]
        for step in steps
    ]  # fmt: skip
    head = ["step", *(metric_label(name) for name, _ in known)]
    return GridTable(f"{title} by step", head, ends_of(rows), frozenset(range(len(head))))


def _not_finite(digest: JournalDigest) -> list[Block]:
    counts = {name: series.not_finite for name, series in digest.series.items() if series.not_finite}
    if not counts:
        return []
    told = ", ".join(f"{metric_label(name)} {count:,} times" for name, count in sorted(counts.items())[:8])
    return [Sentence(f"Not finite, and not drawn: {told}.", "bad")]
