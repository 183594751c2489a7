"""An evaluation's result as text: lines for a terminal, and Markdown with every class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from convmlp_platform.evaluation.result import ClassScore, EvaluationResult, ThroughputRow
from data_prep.console import counted

LABELS = {
    "top1": "top-1",
    "top5": "top-5",
    "real_top1": "ReaL top-1",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
}
COCO_ROWS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar1": "AR 1",
    "ar10": "AR 10",
    "ar100": "AR 100",
    "ar_small": "AR small",
    "ar_medium": "AR medium",
    "ar_large": "AR large",
}
MEASURES = {
    "accuracy": "accuracy",
    "iou": "IoU",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
    "top1": "top-1",
}
_WORST = 5
_WIDTH = 12

Rows = list[list[str]]


def console_lines(result: EvaluationResult) -> list[str]:
    """Returns the lines that a person wants to see at the end of the job."""
    model, data = result.model, result.dataset
    macs = "" if model.macs is None else f", {giga(model.macs)} MACs at {_size(model.macs_size)}"
    lines = [
        f"{result.name}: {model.pinned}",
        _line("model", f"{model.name}, {millions(model.parameters)} parameters{macs}"),
        _line("images", f"{data.images:,} of {data.name} {data.split}, {data.digest[:19]}…"),
        "",
        *_metric_lines(result),
    ]
    if result.per_class:
        lines += ["", *_worst_lines(result)]
    if result.permutation is not None:
        lines.append("")
        for one in result.permutation.rows:
            lines.append(
                _line(f"{one.kind}", f"top-1 {one.metrics['top1']:.2f} % {_permuted(result, one.kind)}")
            )
    if result.throughput is not None:
        lines.append("")
        lines += [
            _line("throughput" if not n else "", _speed(row)) for n, row in enumerate(result.throughput.rows)
        ]
        lines.append(
            _line(
                "",
                f"{result.throughput.precision}, {_size(result.throughput.image_size)}, {_hardware(result)}",
            )
        )
    return lines


def markdown(result: EvaluationResult) -> str:
    """The whole result as a Markdown document."""
    model, data = result.model, result.dataset
    about = [
        [
            "model",
            f"`{model.pinned}`" + ("" if model.given == model.pinned else f" (asked for: `{model.given}`)"),
        ],
        ["network", f"{model.name}, {model.num_classes:,} classes, images of {model.image_size} px"],
        ["parameters", f"{model.parameters:,}"],
        ["MACs", "not counted" if model.macs is None else f"{model.macs:,} at {_size(model.macs_size)}"],
        ["weights", f"sha256 `{model.weights_sha256}`" if model.weights_sha256 else "unknown"],
        ["dataset", f"{data.name}, split {data.split}: {data.images:,} images"],
        ["digest", f"`{data.digest}`"],
        ["computed on", f"{_hardware(result)}, {result.settings.get('precision', 'fp32')}"],
        ["date", result.date],
        ["code", result.git_commit or "not from a git checkout"],
    ]
    parts = [f"# {result.name}", _table(["", ""], about), "## Metrics", *_metric_tables(result)]
    if result.permutation is not None:
        note = "Top-1 of the finished model when its images have their pixels in another order, the same for all."
        rows = [["as in training", f"{result.metrics['top1']:.2f}"]]
        rows += [
            [f"{one.kind} {_permuted(result, one.kind)}", f"{one.metrics['top1']:.2f}"]
            for one in result.permutation.rows
        ]
        parts += ["## Permuted pixels", note, _table(["pixels", "top-1 (%)"], rows)]
    if result.throughput is not None:
        parts += ["## Throughput", *_throughput_table(result)]
    if result.per_class:
        parts += ["## Classes", _class_table(result.per_class)]
    return "\n\n".join(parts) + "\n"


def _metric_lines(result: EvaluationResult) -> list[str]:
    if "box_ap" in result.metrics:
        kinds = _coco_kinds(result)
        lines = [" " * _WIDTH + "".join(f"{kind:>10}" for kind in kinds)]
        for key, label in COCO_ROWS.items():
            values = [result.metrics.get(f"{kind}_{key}") for kind in kinds]
            lines.append(f"  {label:<{_WIDTH - 2}}" + "".join(f"{_number(value):>10}" for value in values))
        return lines
    shown = {name: value for name, value in result.metrics.items() if name not in ("loss", "real_images")}
    lines = [
        _line(LABELS.get(name, name), f"{value:6.2f} %{_note(result, name)}") for name, value in shown.items()
    ]
    return [*lines, _line("loss", f"{result.metrics['loss']:6.4f}")]


def _metric_tables(result: EvaluationResult) -> list[str]:
    if "box_ap" in result.metrics:
        kinds = _coco_kinds(result)
        rows = [
            [label, *(_number(result.metrics.get(f"{kind}_{key}")) for kind in kinds)]
            for key, label in COCO_ROWS.items()
        ]
        note = (
            "COCO's twelve figures by pycocotools, in per cent; - where there is no object to measure it by."
        )
        return [note, _table(["", *kinds], rows)]
    rows = [
        [LABELS.get(name, name), f"{value:.4f}" if name == "loss" else f"{value:.2f} %{_note(result, name)}"]
        for name, value in result.metrics.items()
        if name in LABELS or name == "loss"
    ]
    return [_table(["", ""], rows)]


def _note(result: EvaluationResult, name: str) -> str:
    if name == "real_top1":
        return f" (of {result.metrics['real_images']:,.0f} images that have ReaL labels)"
    return ""


def _coco_kinds(result: EvaluationResult) -> list[str]:
    return [kind for kind in ("box", "mask") if f"{kind}_ap" in result.metrics]


def _worst_lines(result: EvaluationResult) -> list[str]:
    measure = next(iter(result.per_class[0].scores))
    known = [one for one in result.per_class if one.scores[measure] is not None]
    worst = sorted(known, key=lambda one: one.scores[measure] or 0.0)[:_WORST]
    worst = [one for one in worst if (one.scores[measure] or 0.0) < 100.0] or worst[:1]
    label = f"worst {MEASURES.get(measure, measure)}"
    return [
        f"  {label if not n else '':<18}{one.name[:30]:<30} {one.scores[measure]:6.2f}"
        for n, one in enumerate(worst)
    ]


def _class_table(scores: Sequence[ClassScore]) -> str:
    measures = list(scores[0].scores)
    rows = [
        [one.name, f"{one.count:,}", *(_number(one.scores[name], 2) for name in measures)] for one in scores
    ]
    return _table(["class", "count", *(f"{MEASURES.get(name, name)} (%)" for name in measures)], rows)


def _throughput_table(result: EvaluationResult) -> list[str]:
    assert result.throughput is not None
    found = result.throughput
    rows = [
        [
            f"{row.batch_size}",
            f"{row.images_per_second:,.1f}",
            f"{1e3 * row.median_seconds:,.2f}",
            f"{1e3 * row.low_seconds:,.2f} to {1e3 * row.high_seconds:,.2f}",
            f"{row.batches}",
        ]
        for row in found.rows
    ]
    note = f"{found.precision}, images up to {_size(found.image_size)}, on {_hardware(result)}; the forward pass alone."
    head = ["batch", "images / s", "ms a batch (median)", "middle half (ms)", "batches timed"]
    return [note, _table(head, rows)]


def _permuted(result: EvaluationResult, kind: str) -> str:
    assert result.permutation is not None
    size = result.permutation.patch_size
    how = f"{size} px patches and the pixels in each shuffled" if kind == "patches" else "all pixels shuffled"
    return f"({how})"


def _speed(row: ThroughputRow) -> str:
    low, high = (row.batch_size / seconds for seconds in (row.high_seconds, row.low_seconds))
    return f"{row.images_per_second:>10,.1f} images/s, batch {row.batch_size} (middle half {low:,.1f} to {high:,.1f})"


def _hardware(result: EvaluationResult) -> str:
    found = result.hardware
    threads = f", {counted(found.threads, 'thread')}" if found.device == "cpu" else ""
    return f"{found.name}{threads}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _line(label: str, text: str) -> str:
    return f"  {label:<16}{text}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def millions(count: int) -> str:
    """`9.02 M`, of parameters."""
    return f"{count / 1e6:,.2f} M"


def giga(macs: int) -> str:
    """`4.11 G`, or `12.3 M`."""
    return f"{macs / 1e9:.2f} G" if macs >= 1e9 else f"{macs / 1e6:.1f} M"


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} px"
