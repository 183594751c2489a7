"""Checkpoints in MLflow: each is a logged model whose files stay where they are, with its step, state and metrics.

A model is found by its tag before it is made, and belongs to one run: what is sent again changes nothing, and a run
that is made anew gets models of its own. They hold no files, no MLmodel either: a checkpoint isn't to be registered or
served as it is; the run's best model is, and the registry has it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import load_feed, load_target, without_secrets
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointMetrics,
    CheckpointRecord,
    CheckpointRetired,
    ModelInput,
)
from convmlp_platform.tracking.mlflow.client import every, open_client
from convmlp_platform.tracking.mlflow.limits import dataset_name, short_digest, valid_key, valid_model_name
from convmlp_platform.tracking.mlflow.mlflow_internals import EXTERNAL_TAG
from convmlp_platform.tracking.mlflow.server import mlflow_errors, silence
from convmlp_platform.tracking.mlflow.tracking_uri import URI_VARIABLE, sqlite_path
from convmlp_platform.tracking.moved_store import address_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric

KEY_TAG = "convmlp.checkpoint"
MODEL_TYPE = "checkpoint"
_A_PAGE = 50


class CheckpointModels:
    """The logged models of one run's checkpoints. All methods raise what MLflow's client raises."""

    def __init__(self, client: MlflowClient, run_id: str, journal_id: str) -> None:
        self._client, self._run_id, self._journal_id = client, run_id, journal_id
        self._experiment_id: str | None = None

    def send(self, record: CheckpointRecord) -> bool:
        """Tell MLflow; False: it has no model of a checkpoint whose commit was told before."""
        found = self._find(record)
        if isinstance(record, CheckpointCommitted):
            self._commit(record, found)
        elif found is None:
            return False
        elif isinstance(record, CheckpointRetired):
            self._client.set_logged_model_tags(
                found.model_id, {"state": "retired", "retired.because": record.reason}
            )
        else:
            self._link(record, found.model_id)
        return True

    def _find(self, record: CheckpointRecord) -> LoggedModel | None:
        key = record.key(self._journal_id)
        wanted = f"tags.`{KEY_TAG}` = '{key}' AND source_run_id = '{self._run_id}'"
        return next(
            iter(self._client.search_logged_models([self._experiment()], wanted, max_results=1)), None
        )

    def _commit(self, record: CheckpointCommitted, found: LoggedModel | None) -> None:
        """Make the model, list it among the run's outputs, and finalize it, as far as that isn't done."""
        from mlflow.entities import LoggedModelOutput

        if found is not None and str(found.status) == "READY":
            return
        model = found or self._client.create_logged_model(
            self._experiment(),
            name=valid_model_name(record.location.rstrip("/").rpartition("/")[2]),
            source_run_id=self._run_id,
            tags={
                KEY_TAG: record.key(self._journal_id),
                EXTERNAL_TAG: "true",
                "location": record.location,
                "step": str(record.step),
                "state": "committed",
            },
            params={"step": str(record.step), **record.facts},
            model_type=MODEL_TYPE,
        )
        # MLflow takes an output once and fails on the second.
        outputs = self._client.get_run(self._run_id).outputs if found else None
        if not any(one.model_id == model.model_id for one in (outputs.model_outputs if outputs else ())):
            self._client.log_outputs(self._run_id, [LoggedModelOutput(model.model_id, record.step)])
        self._client.finalize_logged_model(model.model_id, "READY")

    def _link(self, record: CheckpointMetrics, model_id: str) -> None:
        """Send the run's own points again, with the model's id: of the run MLflow keeps each point once."""
        metrics = model_metrics(record, model_id, record.step)
        self._client.log_batch(self._run_id, metrics=metrics)

    def _experiment(self) -> str:
        if self._experiment_id is None:
            self._experiment_id = str(self._client.get_run(self._run_id).info.experiment_id)
        return self._experiment_id


def model_metrics(record: CheckpointMetrics | ModelInput, model_id: str, step: int) -> list[Metric]:
    """Metrics on a split of a dataset as those of a logged model."""
    from mlflow.entities import Metric

    digest = short_digest(record.dataset_digest)
    return [
        Metric(
            valid_key(name),
            value,
            record.time,
            step,
            model_id=model_id,
            dataset_name=dataset_name(record.dataset, record.split),
            dataset_digest=digest,
        )
        for name, value in record.values.items()
        if not math.isnan(value)  # of a model MLflow would show it as 0
    ]


@dataclass(frozen=True)
class CheckpointModel:
    """A checkpoint as MLflow has it. `state`: committed or retired."""

    step: int
    state: str
    location: str
    metrics: Mapping[str, float]


def list_models(run_dir: Path, metric: str) -> list[CheckpointModel]:
    """The checkpoints of a run that MLflow knows, those with most of `metric` (`eval/top1`) first; those that weren't
    evaluated come last, newest first.

    Raises:
        TrackingError: the run was never tracked or never sent, or MLflow doesn't answer.
    """
    target, state = load_target(run_dir), load_feed(run_dir)
    uri = os.environ.get(URI_VARIABLE) or address_of(run_dir, target)
    unsent = f"MLflow has nothing of {run_dir} yet; `convmlp replay-tracking {run_dir}` sends it"
    path = sqlite_path(uri)
    if state.run_id is None or not target.owns(state) or (path is not None and not path.is_file()):
        raise TrackingError(unsent)
    if (reason := silence(uri)) is not None:
        raise TrackingError(f"MLflow at {without_secrets(uri)} can't be asked for {run_dir}: {reason}")
    with mlflow_errors(uri, f"the checkpoints of {run_dir} can't be read"):
        client = open_client(uri)
        experiment = str(client.get_run(state.run_id).info.experiment_id)
        return [_row(model) for model in _ranked(client, experiment, state.run_id, metric)]


def _ranked(client: MlflowClient, experiment: str, run_id: str, metric: str) -> Iterator[LoggedModel]:
    wanted = f"source_run_id = '{run_id}' AND model_type = '{MODEL_TYPE}'"
    # A name in backticks is taken for no metric's: the order would be that of their dates.
    order = [{"field_name": f"metrics.{metric}", "ascending": False}]
    return every(
        lambda token: client.search_logged_models(
            [experiment], wanted, max_results=_A_PAGE, order_by=order, page_token=token
        )
    )


def _row(model: LoggedModel) -> CheckpointModel:
    return CheckpointModel(
        int(model.tags["step"]),
        model.tags["state"],
        model.tags["location"],
        {metric.key: metric.value for metric in model.metrics or ()},
    )
