"""Finding what `convmlp compare` is given, and putting it side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convmlp_platform.config.identity import IDENTITY_NAME
from convmlp_platform.config.paths import REGISTRY_SCHEME
from convmlp_platform.errors import ConfigError, DataError
from convmlp_platform.evaluation.compare.compare_runs import compared_mlflow, compared_run
from convmlp_platform.evaluation.compare.compared import (
    Compared,
    Network,
    is_lower_better,
    metric_name,
    with_cost,
)
from convmlp_platform.evaluation.result import RESULT_NAME, EvaluationResult, read_result
from convmlp_platform.runs.find_run import RUNS, SWEEP_NAME, is_remote, locate, missing
from convmlp_platform.tracking.mlflow.client import RUN_ID, read_run
from data_prep.storage.json_files import DamagedJson, read_json

COUNTED = "* on no record: counted by making the network again (convmlp.model_cost)"
_BELOW = (RUNS, "evaluations")
_FORMS = (
    "give runs' folders, a sweep's or an evaluation's folder, ids of MLflow runs, models:/NAME@ALIAS, or a model "
    "bundle's folder"
)


@dataclass(frozen=True)
class _Sweep:
    """The part of sweep.json that is read again: the folders of its trials."""

    trials: list[str]


def find_compared(text: str, metric: str | None = None) -> list[Compared]:
    """The lines that `text` stands for: of a sweep one for each trial that has begun, else one.

    `metric` says which of a run's evaluations is its best; default: its task's.

    Raises:
        ConfigError, TrackingError: there is no such thing, or nothing of it can be read.
    """
    folder = locate(text, _BELOW)
    if folder is None:
        if RUN_ID.fullmatch(text):
            return [compared_mlflow(read_run(text), metric)]
        if is_remote(text) or text.startswith(REGISTRY_SCHEME):
            return [_model(text)]
        raise ConfigError(f"{text}: there is no such file or folder{missing(text, _BELOW)}; {_FORMS}")
    folder = folder.resolve()
    if (folder / SWEEP_NAME).is_file():
        return _sweep(folder, metric)
    if (folder / RESULT_NAME).is_file():
        try:
            return [of_evaluation(read_result(folder))]
        except DataError as error:
            raise ConfigError(str(error)) from None
    if (folder / IDENTITY_NAME).is_file():
        return [compared_run(folder, metric=metric)]
    return [_model(str(folder))]


def of_evaluation(result: EvaluationResult) -> Compared:
    """An evaluation's result as a line."""
    model, rows = result.model, result.throughput.rows if result.throughput else []
    return Compared(
        label=result.name,
        kind="evaluation",
        source=model.pinned,
        model=model.name,
        task=result.task,
        dataset=result.dataset.name,
        digest=result.dataset.digest,
        split=result.dataset.split,
        metrics=dict(result.metrics),
        parameters=model.parameters,
        macs=model.macs,
        image_size=model.image_size,
        forward_per_second=max((row.images_per_second for row in rows), default=None),
        seconds=result.seconds,
    )


def ordered(lines: Sequence[Compared], metric: str | None = None) -> tuple[str, list[Compared]]:
    """(the metric that decides, the lines from the best to the worst); those without it come last.

    Raises:
        ConfigError: none of them has the metric.
    """
    name = metric_name(metric) if metric else lines[0].best_metric
    if not any(name in line.metrics for line in lines):
        known = sorted({each for line in lines for each in line.metrics})
        there = f"; there are {', '.join(known)}" if known else ": none has been evaluated yet"
        raise ConfigError(f"--metric: none of these has {name}{there}")
    sign = 1.0 if is_lower_better(name) else -1.0

    def place(line: Compared) -> tuple[bool, float]:
        return name not in line.metrics, sign * line.metrics.get(name, 0.0)

    return name, sorted(lines, key=place)


def warnings_of(lines: Sequence[Compared], metric: str) -> list[str]:
    """Returns the reasons why the lines are hard to compare, one sentence each."""
    found = []
    splits = {
        line.digest: {one.split for one in lines if one.digest == line.digest and one.split} for line in lines
    }
    datasets: dict[str, list[str]] = {}
    for line in lines:
        # A bundle doesn't say which split it was measured on: no reason for a warning by itself.
        split = line.split if len(splits[line.digest]) > 1 else None
        where = " ".join(filter(None, [line.dataset or "unknown images", split]))
        datasets.setdefault(f"{where} ({(line.digest or 'no digest')[:19]})", []).append(line.label)
    if len(datasets) > 1:
        told = "; ".join(f"{name}: {', '.join(labels)}" for name, labels in datasets.items())
        found.append(f"measured on different images: {told}")
    tasks = {line.task for line in lines}
    if len(tasks) > 1:
        found.append(f"models for different tasks: {', '.join(sorted(tasks))}")
    without = [line.label for line in lines if metric not in line.metrics]
    if without:
        found.append(f"no {metric} on record: {', '.join(without)}")
    return found


def _model(text: str) -> Compared:
    from convmlp_platform.runs.find_model import find_model
    from convmlp_platform.training.evaluation.evaluate import scores_of

    try:
        found = find_model(text)
    except ConfigError as error:
        raise ConfigError(f"{str(error).partition('; give ')[0]}; {_FORMS}") from None
    if found.spec is None:
        raise ConfigError(
            f"{text}: weights alone have no results: evaluate them first (kind: evaluate); {_FORMS}"
        )
    spec, told = found.spec, found.spec.provenance
    metrics = {name: float(value) for name, value in scores_of(told.get("metrics", {})).items()}
    line = Compared(
        label=text if found.kind == "registry" else Path(found.pinned).parent.name,
        kind=found.kind,
        source=found.pinned,
        model=spec.model,
        task=spec.task.name,
        dataset=told.get("dataset"),
        digest=told.get("dataset_digest") or found.lineage.get("init.dataset_digest"),
        metrics=metrics,
        image_size=spec.image_size,
    )
    return with_cost(line, Network.of_bundle(spec))


def _sweep(folder: Path, metric: str | None) -> list[Compared]:
    try:
        trials = read_json(folder / SWEEP_NAME, _Sweep).trials
    except (OSError, DamagedJson) as error:
        raise ConfigError(f"{folder / SWEEP_NAME}: can't be read: {error}") from None
    runs = [folder / name for name in trials if (folder / name / IDENTITY_NAME).is_file()]
    if not runs:
        raise ConfigError(f"{folder}: none of this sweep's trials has begun")
    return [compared_run(run, metric=metric) for run in runs]
