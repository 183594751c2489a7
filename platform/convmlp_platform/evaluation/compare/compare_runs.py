"""Training runs as lines of a comparison: from a run's folder, and from what MLflow has of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from convmlp_platform.config.explain import yaml_text
from convmlp_platform.config.load import parse_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.task_section import BEST_METRICS
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import ConfigError, DataError, TrackingError
from convmlp_platform.evaluation.compare.compared import Compared, Network, is_lower_better, with_cost
from convmlp_platform.models.bundle import read_spec
from convmlp_platform.runs.run_folder import stored_job
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import datasets_of, metric_history, tag_history
from convmlp_platform.tracking.mlflow.client import RunRecord

History = Sequence[tuple[int, Mapping[str, float]]]
_SPEED = "train/images_per_second"


def compared_run(run: Path, label: str | None = None, metric: str | None = None) -> Compared:
    """The run in this folder, as far as it has come. `metric` says which evaluation is the best; default: the task's.

    Raises:
        ConfigError: it is no run's folder, or its job can't be read.
    """
    job = parse_job(stored_job(run), str(run))
    if not isinstance(job, TrainJob):
        raise ConfigError(f"{run} is no training run's folder")
    journal = journal_path(run)
    history, tags = metric_history(journal), tag_history(journal)
    datasets = datasets_of(journal)
    best, last = evaluations(history, BEST_METRICS[job.task.name], metric)
    classes, images = _dataset_facts(run, job)
    steps = max((step for step, _ in history), default=0)
    found = Compared(
        label=label or run.name,
        kind="run",
        source=str(run),
        model=job.model.name,
        task=job.task.name,
        dataset=datasets[-1].name if datasets else None,
        digest=datasets[-1].digest if datasets else None,
        split=job.data.eval_split,
        metrics=best,
        last=last,
        parameters=_number(tags.get("model.parameters", ())),
        image_size=job.data.image_size,
        images_per_second=training_speed(history),
        epochs=steps * job.training.global_batch_size / images if images else None,
        seconds=_seconds(run),
    )
    return with_cost(found, Network.of_job(job, classes) if classes else None)


def compared_mlflow(record: RunRecord, metric: str | None = None) -> Compared:
    """A run that MLflow knows, whose folder may be out of reach; `metric` as in `compared_run`.

    Raises:
        ConfigError: it is no training run of this platform.
    """
    params = {name: yaml_text.parse(text, f"param {name}") for name, text in record.params.items()}
    task = params.get("task.name", "classification")
    if "model.name" not in params or task not in BEST_METRICS:
        raise ConfigError(
            f"MLflow run {record.run_id} is no training run of this platform: it has no model.name"
        )
    best, last = evaluations(record.history, BEST_METRICS[task], metric)
    classes = record.tags.get("dataset.classes") or params.get("model.num_classes")
    options = {
        name.removeprefix("model.options."): value
        for name, value in params.items()
        if name.startswith("model.options.")
    }
    size = params.get("data.image_size")
    network = None
    if str(classes).isdecimal() and isinstance(size, int):
        network = Network(
            params["model.name"], int(str(classes)), size, task, options,
            params.get("task.pyramid_channels") or 256, _none(params.get("task.anchor_scale")),
        )  # fmt: skip
    found = Compared(
        label=record.name or record.run_id,
        kind="mlflow",
        source=f"MLflow run {record.run_id}",
        model=params["model.name"],
        task=task,
        dataset=record.dataset,
        digest=record.tags.get("dataset.digest"),
        split=params.get("data.eval_split"),
        metrics=best,
        last=last,
        parameters=_number([record.tags.get("model.parameters", "")]),
        image_size=size if isinstance(size, int) else None,
        images_per_second=training_speed(record.history),
        seconds=record.seconds,
    )
    return with_cost(found, network)


def evaluations(
    history: History, usual: str, metric: str | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """(best, last) of a run's evaluations, names without `eval/`; empty where there was none. The best is so by
    `metric`, or by the `usual` one where that is None or not on record."""
    known = {name for _, values in history for name in values}
    by = metric if metric is not None and f"eval/{metric}" in known else usual
    found = [
        {name.removeprefix("eval/"): value for name, value in values.items() if name.startswith("eval/")}
        for _, values in history
        if f"eval/{by}" in values
    ]
    if not found:
        return {}, {}
    choose = min if is_lower_better(by) else max
    return choose(found, key=lambda values: values[by]), found[-1]


def training_speed(history: History) -> float | None:
    """Images a second, the median of what was logged; None: nothing was."""
    speeds = [values[_SPEED] for _, values in history if _SPEED in values]
    return median(speeds) if speeds else None


def _dataset_facts(run: Path, job: TrainJob) -> tuple[int | None, int | None]:
    """(classes, training images): by the run's best model and its dataset, as far as these are at hand."""
    classes = job.model.num_classes
    with contextlib.suppress(TrackingError):
        classes = read_spec(run / "best").num_classes
    try:
        manifest = open_manifest(job.data.path, None)
    except DataError:
        return classes, None
    split = manifest.splits.get(job.data.train_split)
    return classes or manifest.num_classes, split.num_samples if split else None


def _seconds(run: Path) -> float | None:
    """While a driver was up."""
    from convmlp_platform.goodput.account import account_of

    try:
        found = account_of(run)
    except OSError:
        return None
    return None if found is None else found.wall_s


def _number(texts: Any) -> int | None:
    return next((int(text) for text in texts if text.isdecimal()), None)


def _none(value: Any) -> Any:
    return None if value == "None" else value
