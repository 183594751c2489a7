"""Opening MLflow: the client, the SQLite file, the experiment, the record of one run.

MLflow is imported here and only when needed: the import takes 2-7 s on two shared cores and a new SQLite file 2 s more.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import without_secrets
from convmlp_platform.tracking.mlflow.server import mlflow_errors, settle_mlflow, silence
from convmlp_platform.tracking.mlflow.tracking_uri import artifact_location, sqlite_path, tracking_uri
from convmlp_platform.tracking.moved_store import follow, is_read_only
from data_prep.storage import locks

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.store.entities import PagedList

Found = TypeVar("Found")
A_PAGE = 200
"""Entries of a search that MLflow is asked for at once."""

_CREATED_WITHIN_S = 120.0
_CHATTY = ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc")


def open_client(uri: str) -> MlflowClient:
    """A client of tracking and registry at `uri`, which is created where it is a SQLite file not yet there.

    Raises:
        TrackingError: the SQLite file can't be made or opened, or came without its artifacts; or the database doesn't
            answer.
    """
    settle_mlflow()
    from mlflow import MlflowClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with mlflow_errors(uri, "it can't be opened"), _only_one_creates(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if (path := sqlite_path(uri)) is not None:
            client.get_experiment("0")
            follow(path)
    return client


@contextmanager
def _only_one_creates(uri: str) -> Iterator[None]:
    """Two processes that make the tables of one SQLite file at once both fail ("table already exists")."""
    path = sqlite_path(uri)
    if path is None or is_read_only(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    try:
        with locks.holding(lock, patience=_CREATED_WITHIN_S):
            yield
    except locks.Held as held:
        raise TrackingError(f"{path} is being opened by {held}, for {_CREATED_WITHIN_S:g} s by now") from None


def ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of experiment `name`, created where it is missing (its artifacts beside a SQLite file).

    Raises:
        TrackingError: it was deleted.
        MlflowException: the server's.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_location(uri)))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"tracking.experiment (={name!r}) was deleted from MLflow; "
            f"`mlflow experiments restore -x {found.experiment_id}` or name another"
        )
    return str(found.experiment_id)


@contextmanager
def fluent_at(uri: str) -> Iterator[None]:
    """MLflow's fluent calls go to `uri`. It puts that into the environment, where it must not stay."""
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def every(search: Callable[[str | None], PagedList[Found]]) -> Iterator[Found]:
    """All that a search of MLflow's finds, page after page; `search` takes the token of a page."""
    token: str | None = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def versions_of(client: MlflowClient, name: str) -> Iterator[ModelVersion]:
    """All versions of a registered model, in no order; none where there is no such model."""
    return every(
        lambda token: client.search_model_versions(f"name='{name}'", max_results=A_PAGE, page_token=token)
    )


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


def read_run(run_id: str) -> RunRecord:
    """The run of this id, at `MLFLOW_TRACKING_URI` or its default.

    Raises:
        TrackingError: MLflow doesn't answer, or has no such run.
    """
    uri = tracking_uri(None)
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
    names = [{tag.key: tag.value for tag in one.tags}.get("dataset", one.dataset.name) for one in datasets]
    ended, started = run.info.end_time, run.info.start_time
    return RunRecord(
        run_id,
        run.info.run_name or "",
        run.data.params,
        run.data.tags,
        sorted(by_step.items()),
        names[0] if names else None,
        (ended - started) / 1000 if ended and started else None,
    )
