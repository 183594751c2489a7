"""The record of one run in MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import without_secrets
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.server import mlflow_errors, silence
from convmlp_platform.tracking.mlflow.tracking_uri import sqlite_path, tracking_uri

RUN_ID = re.compile(r"[0-9a-f]{32}")
# The histories that are fetched: MLflow gives one metric's at a time.
_PREFIXES = ("eval/", "train/images_per_second")


@dataclass(frozen=True)
class RunRecord:
    """A run as MLflow knows it. `history`: (step, values) of its evaluations and training speed, by step; `seconds`:
    from its first start to its last end."""

    run_id: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    history: list[tuple[int, dict[str, float]]]
    dataset: str | None
    seconds: float | None


def read_run(run_id: str, section: TrackingTarget | None = None) -> RunRecord:
    """The run of this id.

    Raises:
        TrackingError: MLflow doesn't answer, or has no such run.
    """
    uri = tracking_uri(section)
    if (reason := silence(uri)) is not None:
        raise TrackingError(f"MLflow at {without_secrets(uri)} can't be asked for run {run_id}: {reason}")
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise TrackingError(
            f"run {run_id}: there is no MLflow at {without_secrets(uri)}; MLFLOW_TRACKING_URI names another"
        )
    with mlflow_errors(uri, f"run {run_id} can't be read"):
        client = open_client(uri)
        run = client.get_run(run_id)
        by_step: dict[int, dict[str, float]] = {}
        for name in run.data.metrics:
            if name.startswith(_PREFIXES):
                for point in client.get_metric_history(run_id, name):
                    by_step.setdefault(point.step, {})[name] = point.value
    datasets = run.inputs.dataset_inputs if run.inputs else []
    ended, started = run.info.end_time, run.info.start_time
    return RunRecord(
        run_id,
        run.info.run_name or "",
        run.data.params,
        run.data.tags,
        sorted(by_step.items()),
        datasets[0].dataset.name if datasets else None,
        (ended - started) / 1000 if ended and started else None,
    )
