"""The training runs that MLflow knows as rows: what it was told, whichever machine they are on."""

from __future__ import annotations

import math
from typing import Any

from convmlp_platform.config.sections.task_section import BEST_METRICS
from convmlp_platform.errors import ConfigError, TrackingError
from convmlp_platform.overview.run_overview import RunOverview
from convmlp_platform.registry.lineage.run_facts import whole_number
from convmlp_platform.runs.run_state import OF_STATUS
from convmlp_platform.tracking.delivery_state import without_secrets
from convmlp_platform.tracking.journal import STEPS_TAG
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.server import mlflow_errors, silence
from convmlp_platform.tracking.mlflow.tracking_uri import sqlite_path, tracking_uri

_OF_TRAINING = "world_size"
"""A tag that only training runs have: preparations, evaluations and sweeps are no rows."""
MOST = 200
_NAMES_SHOWN = 20


def mlflow_runs(experiment: str | None = None) -> list[RunOverview]:
    """The newest training runs of an experiment, or of all, as MLflow has them; `MOST` at most.

    A run whose driver died without a word is `running` there: MLflow isn't told.

    Args:
        experiment: by name; None: all of them.

    Raises:
        TrackingError: MLflow doesn't answer.
        ConfigError: it has no such experiment.
    """
    uri = tracking_uri(None)
    if (reason := silence(uri)) is not None:
        raise TrackingError(f"MLflow at {without_secrets(uri)} can't be asked for runs: {reason}")
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise TrackingError(
            f"there is no MLflow at {without_secrets(uri)} yet; MLFLOW_TRACKING_URI names another"
        )
    with mlflow_errors(uri, "runs can't be read"):
        client = open_client(uri)
        known = {one.name: one.experiment_id for one in client.search_experiments()}
        if experiment is not None and experiment not in known:
            names = ", ".join(sorted(known)[:_NAMES_SHOWN])
            raise ConfigError(
                f"MLflow at {without_secrets(uri)} has no experiment {experiment!r}: it has {names}"
            )
        wanted = list(known.values()) if experiment is None else [known[experiment]]
        runs = client.search_runs(wanted, f"tags.{_OF_TRAINING} != ''", max_results=MOST)
        return [_row(client, run) for run in runs]


def _row(client: Any, run: Any) -> RunOverview:
    """The row of one of MLflow's runs; the best evaluation takes a request of its own."""
    tags, params = run.data.tags, run.data.params
    metric = BEST_METRICS.get(params.get("task.name", ""), BEST_METRICS["classification"])
    history = (
        client.get_metric_history(run.info.run_id, f"eval/{metric}")
        if f"eval/{metric}" in run.data.metrics
        else []
    )
    values = [point.value for point in history if math.isfinite(point.value)]
    steps = [point.step for point in history] + [whole_number(tags.get("checkpoint.step")) or 0]
    times = [run.info.start_time, run.info.end_time, *(point.timestamp for point in history)]
    state = OF_STATUS.get(run.info.status, run.info.status.lower())
    return RunOverview(
        name=run.info.run_name or run.info.run_id,
        place=run.info.run_id,
        state=state,
        note="" if state != "running" else "as MLflow was told; the last sign is an evaluation",
        step=max(steps) or None,
        steps=whole_number(tags.get(STEPS_TAG)),
        metric=metric,
        best=max(values, default=None),
        goodput=run.data.metrics.get("goodput/useful_step"),
        workers=whole_number(tags.get("world_size")),
        saved=whole_number(tags.get("checkpoint.step")),
        seen=max(time for time in times if time is not None) / 1000,
    )
