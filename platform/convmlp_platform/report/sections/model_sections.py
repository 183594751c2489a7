"""What the run's models were evaluated to, and what the best one says of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from convmlp_platform.config.paths import root
from convmlp_platform.config.sections.task_section import best_score
from convmlp_platform.errors import DataError, TrackingError
from convmlp_platform.evaluation.report.table import MEASURES
from convmlp_platform.evaluation.result import RESULT_NAME, EvaluationResult, read_result
from convmlp_platform.models.bundle import SPEC_NAME, read_spec
from convmlp_platform.report.blocks import (
    Block,
    EmbeddedPicture,
    FactTable,
    Folded,
    GridTable,
    Sentence,
    ends_of,
)
from convmlp_platform.report.embedded_images import encoded_file
from convmlp_platform.report.reported_run import ReportedRun
from convmlp_platform.report.sections.curves_section import metric_label
from convmlp_platform.training.evaluation.evaluate import scores_of

_MOST_RESULTS, _MOST_READ = 3, 100
_MOST_CLASSES = 200


def evaluation(facts: ReportedRun) -> list[Block]:
    """The best and the last evaluation, all of them, and scores by class where an evaluation job has made some."""
    done = [line for line in facts.evaluations if line.metrics]
    if not done:
        return [Sentence("Nothing was evaluated yet."), *_by_class(facts)]
    best, last = best_metrics(facts), done[-1]
    blocks: list[Block] = []
    if score := best_score(best):
        kept = _kept_step(facts)
        where = "" if kept is None else f" after step {kept:,}"
        blocks.append(
            Sentence(
                f"The best evaluation{where} has {metric_label(f'eval/{score[0]}')} {_figure(*score)}.",
                "good",
            )
        )
    names = list(dict.fromkeys([*scores_of(best), *scores_of(last.metrics)]))
    rows = [[metric_label(f"eval/{name}"), _of(best, name), _of(last.metrics, name)] for name in names]
    head = ["on held-out images", "best, kept as the model", f"last, after step {last.step:,}"]
    blocks.append(GridTable("Best and last evaluation", head, rows, frozenset({1, 2})))
    every = [name for name in names if any(f"eval/{name}" in line.metrics for line in done)]
    both = [
        name
        for name in dict.fromkeys(name for line in done for name in line.metrics)
        if name.startswith(("eval_average/", "eval_plain/"))
    ]
    shown = [*(f"eval/{name}" for name in every), *both]
    table = GridTable(
        "Evaluations in their order; a step that was rolled back may be there twice",
        ["step", "attempt", *(metric_label(name) for name in shown)],
        ends_of(
            [
                [f"{line.step:,}", f"{line.attempt}", *(_cell(line.metrics, name) for name in shown)]
                for line in done
            ]
        ),
        frozenset(range(2 + len(shown))),
    )
    return [*blocks, Folded(f"All {len(done):,} evaluations", [table]), *_by_class(facts)]


def best_metrics(facts: ReportedRun) -> dict[str, float]:
    """Of the evaluation whose weights were kept; where these can't be read, of the best on record."""
    try:
        metrics = read_spec(facts.folder.best).provenance.get("metrics")
    except TrackingError:
        metrics = None
    if isinstance(metrics, dict) and all(isinstance(value, (int, float)) for value in metrics.values()):
        return {str(name): float(value) for name, value in metrics.items()}
    scored = [(score[1], line.metrics) for line in facts.evaluations if (score := best_score(line.metrics))]
    return max(scored, key=lambda pair: pair[0])[1] if scored else {}


def _kept_step(facts: ReportedRun) -> int | None:
    try:
        step = read_spec(facts.folder.best).provenance.get("step")
    except TrackingError:
        return None
    return step if isinstance(step, int) else None


def _of(metrics: Mapping[str, float], name: str) -> str:
    return _cell(metrics, f"eval/{name}")


def _cell(metrics: Mapping[str, float], name: str) -> str:
    return _figure(name.rpartition("/")[2], metrics[name]) if name in metrics else ""


def _figure(name: str, value: float) -> str:
    return f"{value:.4f}" if name == "loss" else f"{value:.2f} %"


def _by_class(facts: ReportedRun) -> list[Block]:
    """Of the newest evaluation jobs that judged this run's model."""
    found = [result for result in _results(facts) if result.per_class][:_MOST_RESULTS]
    if not found:
        return [
            Sentence(
                "Scores by class: none; a job of kind `evaluate` with the run as its model makes them.",
                "faint",
            )
        ]
    return [
        Folded(
            f"By class: {one.name}, {one.dataset.name} {one.dataset.split}, {one.date[:10]}",
            [_class_table(one), _other_figures(one)],
        )
        for one in found
    ]  # fmt: skip


def _class_table(result: EvaluationResult) -> GridTable:
    measures = list(result.per_class[0].scores)
    worst = sorted(
        result.per_class,
        key=lambda one: (one.scores[measures[0]] is None, one.scores[measures[0]] or 0.0),
    )
    rows: list[Sequence[str]] = [
        [
            one.name,
            f"{one.count:,}",
            *("" if one.scores[m] is None else f"{one.scores[m]:.2f} %" for m in measures),
        ]
        for one in worst
    ]
    head = ["class", "count", *(MEASURES.get(measure, measure) for measure in measures)]
    return GridTable(
        "Classes, the worst first", head, ends_of(rows, _MOST_CLASSES), frozenset(range(1, len(head)))
    )


def _other_figures(result: EvaluationResult) -> FactTable:
    rows = [(name, _figure(name, value)) for name, value in result.metrics.items()]
    return FactTable(
        "All images", [("model", result.model.pinned), ("images", f"{result.dataset.images:,}"), *rows]
    )


def _results(facts: ReportedRun) -> Iterator[EvaluationResult]:
    """Results of evaluation jobs whose model is this run's, the newest first."""
    folders = {root() / "evaluations", facts.path.parent.parent / "evaluations"}
    files = [file for folder in folders for file in folder.glob(f"*/{RESULT_NAME}")]
    newest = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
    for file in newest[:_MOST_READ]:
        try:
            result = read_result(file.parent)
        except DataError:
            continue
        lineage = result.model.lineage
        same = lineage.get("init.identity", facts.identity) == facts.identity
        if lineage.get("init.run") == facts.path.name and same:
            yield result


def predictions(facts: ReportedRun) -> list[Block]:
    """The picture that the run ended with."""
    path = facts.folder.plots / "predictions.png"
    if not path.is_file():
        made = (facts.folder.best / SPEC_NAME).is_file()
        how = f"`convmlp pictures predictions {facts.path.name} DATASET --out FILE.png` draws them now."
        return [
            Sentence(
                "There is no picture of predictions: a run draws it when it ends. "
                + (how if made else "No model was kept yet.")
            )
        ]
    image = encoded_file(path, facts.limits.picture_bytes)
    if image is None:
        return [
            Sentence(f"The picture of predictions ({path.name}) is left out: the page would be too large.")
        ]
    alt = "Held-out images, each with what the model says and what is true."
    caption = "The first held-out images with what the kept model says of them, beside the truth."
    return [EmbeddedPicture(image.uri, image.width, image.height, alt, caption)]
