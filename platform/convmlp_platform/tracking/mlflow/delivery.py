"""Handing journal records to one MLflow run. Everything here may be repeated without changing the outcome.

MLflow keeps a metric point once per (key, time, step, value), a param once per key, a tag's last value, a
dataset once per (name, digest), an artifact once per path, and a checkpoint's model is looked for before it is made:
so records sent again after a crash leave no trace.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from convmlp_platform.tracking.delivery_state import Target
from convmlp_platform.tracking.journal import (
    Artifact,
    CheckpointRecord,
    Chunk,
    Dataset,
    MetricsRecord,
    ModelInput,
    Params,
    Record,
    Status,
    Tags,
    VersionTags,
)
from convmlp_platform.tracking.mlflow.checkpoint_models import CheckpointModels, model_metrics
from convmlp_platform.tracking.mlflow.client import ensure_experiment
from convmlp_platform.tracking.mlflow.limits import MAX_VALUE_LENGTH, dataset_name, short_digest, valid_key
from convmlp_platform.tracking.mlflow.server import error_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

JOURNAL_TAG = "convmlp.journal"
_LOGGED_MODEL = re.compile(r"models:/(m-[0-9a-f]{32})/?")
_METRICS_A_BATCH, _OTHERS_A_BATCH = 1000, 100
# Codes that the same request will get again, as long as the server knows the run. Log-in trouble isn't among them: it
# can be mended while we wait. A server older than MLflow 3 has no models of checkpoints: ENDPOINT_NOT_FOUND.
_REFUSED = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "ENDPOINT_NOT_FOUND",
}

Item = TypeVar("Item")


def in_batches(chunk: Chunk) -> Iterator[tuple[list[Record], int]]:
    """The records of a chunk in groups of few requests each, and the offset behind each group.

    Only metrics and tags are gathered: all else has its own place in the order of things.
    """
    group: list[Record] = []
    end = metrics = tags = 0
    for record, behind in zip(chunk.records, chunk.ends, strict=True):
        more_metrics = len(record.values) if isinstance(record, MetricsRecord) else 0
        more_tags = len(record.values) if isinstance(record, Tags) else 0
        alone = not isinstance(record, (MetricsRecord, Tags, Artifact))
        if group and (
            alone or metrics + more_metrics > _METRICS_A_BATCH or tags + more_tags > _OTHERS_A_BATCH
        ):
            yield group, end
            group, metrics, tags = [], 0, 0
        group.append(record)
        end, metrics, tags = behind, metrics + more_metrics, tags + more_tags
        if alone:
            yield group, end
            group = []
    if group or end != chunk.end:
        yield group, chunk.end


class RunLost(Exception):
    """The server is there and has no such run (any more)."""


def find_or_create_run(client: MlflowClient, uri: str, target: Target, start_time: int) -> str:
    """The id of the run made for this journal.

    It is looked for first: a request whose answer got lost has made the run all the same.
    """
    experiment_id = ensure_experiment(client, uri, target.experiment)
    found = client.search_runs(
        [experiment_id], f"tags.`{JOURNAL_TAG}` = '{target.journal_id}'", max_results=1
    )
    if found:
        return str(found[0].info.run_id)
    tags = {JOURNAL_TAG: target.journal_id}
    run = client.create_run(experiment_id, start_time=start_time, tags=tags, run_name=target.run_name)
    return str(run.info.run_id)


def run_exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the server knows the run and it isn't in the bin.

    Raises:
        MlflowException: the server can't say now.
    """
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def logged_model_of(version: ModelVersion) -> str | None:
    """The id of the logged model that a version of a registered model was made from; None: from none.

    MLflow's database doesn't keep it with the version: the version's source names it.
    """
    found = _LOGGED_MODEL.fullmatch(version.source or "")
    return str(version.model_id) if version.model_id else found and found[1]


class Delivery:
    """Sends records to run `run_id`. `dropped` counts what the server refused for good."""

    def __init__(self, client: MlflowClient, run_id: str, uri: str, journal_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.uri = uri
        self.checkpoints = CheckpointModels(client, run_id, journal_id)
        self.dropped = 0

    def send_values(self, records: Sequence[Record]) -> None:
        """Send all but artifacts and the run's end, which `send_end` sends.

        Raises:
            RunLost: start again with another run.
            MlflowException: the server can't be reached or is in trouble: try again later.
        """
        self._send_params(records)
        self._in_batches(self._metrics(records), _METRICS_A_BATCH, "metrics")
        self._send_tags(
            {k: v for record in records if isinstance(record, Tags) for k, v in record.values.items()}
        )
        for record in records:
            if isinstance(record, Dataset):
                self._guarded(partial(self._send_dataset, record), f"dataset {record.name}")
            elif isinstance(record, ModelInput):
                what = f"input models:/{record.model}/{record.version}"
                self._guarded(partial(self._send_model_input, record, what), what)
            elif isinstance(record, Status) and not record.is_end:
                self._guarded(
                    partial(self.client.update_run, self.run_id, status="RUNNING"), "status RUNNING"
                )
            elif isinstance(record, VersionTags):
                what = f"tags of models:/{record.model}/{record.version}"
                self._guarded(partial(self._send_version_tags, record), what)
            elif isinstance(record, CheckpointRecord):
                what = f"{record.kind} of {record.location}"
                self._guarded(partial(self._send_checkpoint, record, what), what)

    def send_end(self, record: Status) -> None:
        """Say how and when the run ended. Raises as `send_values` does."""
        end = partial(self.client.set_terminated, self.run_id, record.status, end_time=record.time)
        self._guarded(end, f"status {record.status}")

    def send_artifact(self, artifact: Artifact) -> None:
        """Upload one file or folder; one that is gone is dropped.

        Raises as `send_values` does, and what the artifact store raises.
        """
        source = Path(artifact.source)
        if not source.exists():
            self._drop(f"artifact {source}", "the file is gone")
            return
        upload = self.client.log_artifacts if source.is_dir() else self.client.log_artifact
        self._guarded(lambda: upload(self.run_id, str(source), artifact.folder or None), f"artifact {source}")

    def _metrics(self, records: Sequence[Record]) -> Iterator[object]:
        from mlflow.entities import Metric

        for record in records:
            if isinstance(record, MetricsRecord):
                for key, value in record.values.items():
                    yield Metric(valid_key(key), value, record.time, record.step)

    def _send_params(self, records: Sequence[Record]) -> None:
        """MLflow refuses to change a param: what a restart runs with is kept as tag `changed.NAME`."""
        from mlflow.entities import Param

        wanted = {
            valid_key(key): value[:MAX_VALUE_LENGTH]
            for record in records
            if isinstance(record, Params)
            for key, value in record.values.items()
        }
        if not wanted:
            return
        if not run_exists(self.client, self.run_id):
            raise RunLost(self.run_id)
        known = self.client.get_run(self.run_id).data.params
        fresh = (Param(key, value) for key, value in wanted.items() if key not in known)
        self._in_batches(fresh, _OTHERS_A_BATCH, "params")
        self._send_tags({f"changed.{k}": v for k, v in wanted.items() if known.get(k, v) != v})

    def _send_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        pairs = (RunTag(valid_key(key), value[:MAX_VALUE_LENGTH]) for key, value in tags.items())
        self._in_batches(pairs, _OTHERS_A_BATCH, "tags")

    def _send_dataset(self, record: Dataset) -> None:
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput, InputTag

        source = json.dumps({"uri": record.source})
        counts = {"num_rows": record.rows, "num_classes": record.classes}
        profile = (
            json.dumps({name: count for name, count in counts.items() if count}) if record.rows else None
        )
        # The whole digest goes into a tag of the input.
        dataset = MlflowDataset(
            name=dataset_name(record.name, record.split),
            digest=short_digest(record.digest),
            source_type="local",
            source=source,
            profile=profile,
        )
        tags = {"mlflow.data.context": record.context, "digest": record.digest}
        tags |= {"dataset": record.name, "split": record.split} if record.split else {}
        tags |= {name: str(count) for name, count in counts.items() if count}
        inputs = [DatasetInput(dataset, [InputTag(name, value) for name, value in tags.items()])]
        self.client.log_inputs(self.run_id, inputs)

    def _send_model_input(self, record: ModelInput, what: str) -> None:
        from mlflow.entities import LoggedModelInput

        model_id = logged_model_of(self.client.get_model_version(record.model, record.version))
        if model_id is None:
            self._drop(what, "it was registered without a logged model")
            return
        inputs = self.client.get_run(self.run_id).inputs
        known = inputs.model_inputs if inputs is not None else []
        if not any(one.model_id == model_id for one in known or ()):
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])
        if record.values:
            self.client.log_batch(self.run_id, metrics=model_metrics(record, model_id, step=0))

    def _send_version_tags(self, record: VersionTags) -> None:
        for key, value in (record.values | {record.run_tag: self.run_id}).items():
            self.client.set_model_version_tag(record.model, record.version, valid_key(key), value)

    def _send_checkpoint(self, record: CheckpointRecord, what: str) -> None:
        if not self.checkpoints.send(record):
            self._drop(what, "MLflow has no such model (any more)")

    def _in_batches(self, items: Iterator[object], size: int, argument: str) -> None:
        """Send by `log_batch`; a refused batch goes item by item, so that one bad item costs only itself."""
        while batch := list(islice(items, size)):
            try:
                self.client.log_batch(self.run_id, **{argument: batch})
            except Exception as error:
                self._raise_unless_refused(error)
                for item in batch:
                    send_one = partial(self.client.log_batch, self.run_id, **{argument: [item]})
                    self._guarded(send_one, f"{argument[:-1]} {item}")

    def _guarded(self, send: Callable[[], object], what: str) -> None:
        try:
            send()
        except Exception as error:
            self._raise_unless_refused(error)
            self._drop(what, error_text(error, self.uri))

    def _raise_unless_refused(self, error: Exception) -> None:
        if getattr(error, "error_code", None) not in _REFUSED:
            raise error
        if not run_exists(self.client, self.run_id):
            raise RunLost(self.run_id) from error

    def _drop(self, what: str, why: str) -> None:
        self.dropped += 1
        logger.warning("MLflow run %s: %s is left out: %s", self.run_id, what, why)
