"""The calls by which training records a run. Each writes a line to the local journal; none uses the network."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import (
    Target,
    journal_path,
    load_feed,
    load_target,
    save_target,
    without_secrets,
)
from convmlp_platform.tracking.environment_tags import environment_tags
from convmlp_platform.tracking.journal import (
    Artifact,
    CheckpointRecord,
    Dataset,
    Journal,
    MetricsRecord,
    ModelInput,
    Params,
    Record,
    Status,
    Tags,
)
from convmlp_platform.tracking.mlflow.feeder import Feeder
from convmlp_platform.tracking.mlflow.limits import MAX_VALUE_LENGTH
from convmlp_platform.tracking.mlflow.tracking_uri import tracking_uri
from convmlp_platform.tracking.provenance.code_state import CodeState
from data_prep.storage.urls import scrubbed

logger = logging.getLogger(__name__)

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Records one run, on rank 0. Nothing raises after `open`: a full disk costs points, not the run."""

    def __init__(self, journal: Journal, feeder: Feeder, run_dir: Path) -> None:
        self._journal = journal
        self._feeder = feeder
        self._run_dir = run_dir
        self._lost = 0
        self._finished = False
        self.on_metrics: Callable[[MetricsRecord], object] | None = None
        """Is told of all metrics that are recorded; must not raise."""

    @classmethod
    def open(
        cls, section: TrackingSection, *, run_dir: Path, run_name: str, code: CodeState | None = None
    ) -> Tracker:
        """Start recording `run_dir`'s run, or go on in the same MLflow run, as long as MLflow has it.

        Environment tags (`environment.environment_tags`, which takes `code`) and `tracking.tags` are set.

        Raises:
            TrackingError: `run_dir` can't be written.
        """
        uri = tracking_uri(section)
        try:
            journal = Journal(journal_path(run_dir))
            target = Target(
                uri=without_secrets(uri),
                experiment=section.experiment,
                run_name=run_name,
                folder=str(run_dir.absolute()),
            )
            _set_target(run_dir, target)
        except OSError as error:
            raise TrackingError(f"{run_dir}: the run's journal can't be written: {error}") from error
        tracker = cls(journal, Feeder(run_dir, uri), run_dir)
        tracker._append(Status(status="RUNNING"))
        tracker.set_tags(environment_tags(code) | section.tags)
        return tracker

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; waits up to 30 s for its creation, then None."""
        return self.wait_for_run_id(30.0)

    def wait_for_run_id(self, timeout: float) -> str | None:
        """The MLflow run's id, None where MLflow hasn't made it within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        target = load_target(self._run_dir)
        while True:
            state = load_feed(self._run_dir)
            if state.run_id is not None and target.owns(state):
                return state.run_id
            if self._finished or time.monotonic() >= deadline:
                return None
            time.sleep(0.05)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log nested `params` by dotted name (`optimizer.lr`). A name logged before keeps its first value."""
        self._append(Params(values=flatten(params)))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> MetricsRecord:
        """Log scalars of one step; NaN and infinities too (MLflow shows infinity as the largest float). Returns what
        was recorded."""
        record = MetricsRecord(step=step, values={key: float(value) for key, value in metrics.items()})
        self._append(record)
        if self.on_metrics is not None:
            self.on_metrics(record)
        return record

    def log_checkpoint(self, record: CheckpointRecord) -> None:
        """Log what became of a checkpoint, or metrics that belong to it."""
        self._append(record)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file (or a folder's content) to artifact folder `folder`, as it is when its turn comes."""
        self._append(Artifact(source=str(path.absolute()), folder=folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; the last value holds. Passwords and tokens in URLs are left out (`journal.Tags`)."""
        self._append(Tags(values={key: str(value) for key, value in tags.items()}))

    def log_dataset(
        self,
        name: str,
        digest: str,
        source: str,
        context: str,
        *,
        split: str = "",
        rows: int = 0,
        classes: int = 0,
    ) -> None:
        """Log a dataset, or a split of it, as the run's input, e.g. context "training"; its tag `digest` is whole."""
        self._append(
            Dataset(
                name=name,
                digest=digest,
                source=source,
                context=context,
                split=split,
                rows=rows,
                classes=classes,
            )
        )

    def log_input_model(self, model: str, version: str) -> None:
        """Log a version of a registered model as the run's input: it began from its weights."""
        self._append(ModelInput(model=model, version=version))

    def finish(self, status: EndStatus = "FINISHED", *, timeout: float = 60.0) -> bool:
        """Record the end, give MLflow up to `timeout` seconds to catch up; whether it has everything.

        A server that fails rather than being slow is given up after 10 s (`replayer.GIVE_UP_SECONDS`). What
        is left is said, with the command that sends it later. A second call does nothing.
        """
        if self._finished:
            return True
        self._append(Status(status=status))
        self._finished = True
        sent = self._feeder.close(timeout)
        try:
            self._journal.close()
        except OSError as error:
            logger.warning("tracking: the journal can't be closed: %s", error)
        if not sent:
            left = self._journal.path.stat().st_size - load_feed(self._run_dir).values
            logger.warning(
                "tracking: %d bytes of %s (and artifacts) have not reached MLflow; "
                "`convmlp replay-tracking %s` sends them",
                max(left, 0),
                self._journal.path,
                self._run_dir,
            )
        return sent

    def _append(self, record: Record) -> None:
        if self._finished:
            return
        try:
            self._journal.append(record)
            if isinstance(record, Status):
                self._journal.sync()
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                logger.warning("tracking: records can't be written and are lost: %s", error)
        self._feeder.ensure_alive()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested `values` by dotted name, as text of at most 6000 characters; lists as JSON. Passwords and tokens in
    URLs are left out."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
            continue
        text = json.dumps(value, default=str) if isinstance(value, (list, tuple, Mapping)) else str(value)
        flat[name] = scrubbed(text)[:MAX_VALUE_LENGTH]
    return flat


def _set_target(run_dir: Path, target: Target) -> None:
    """Keep the journal's id; a new server or experiment gets the whole journal, in a new run."""
    try:
        known = load_target(run_dir)
    except TrackingError:
        save_target(run_dir, target)
        return
    wanted = target.model_copy(update={"journal_id": known.journal_id})
    if wanted != known:
        save_target(run_dir, wanted)
