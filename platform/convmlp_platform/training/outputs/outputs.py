"""The outputs of a run for people: its metrics in MLflow, its best model, its curves.

A run's incidents in MLflow: as artifacts under `incidents/`, and the newest in words as a tag.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import State
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import BundleSpec, read_spec, write_bundle
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import STEPS_TAG, artifact_folders, metrics_at
from convmlp_platform.tracking.journal_digest import digest_of
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.build.bundle_spec import bundle_spec
from convmlp_platform.training.build.initial_weights import lineage_tags
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.evaluation.evaluate import Weights, taken_weights
from convmlp_platform.training.guard.bad_steps import BadStep
from convmlp_platform.training.guard.incidents import WEIGHTS, read_incidents
from convmlp_platform.training.outputs.checkpoint_log import CheckpointLog
from convmlp_platform.training.outputs.curves import plot_curves
from convmlp_platform.training.step_plan import TrainState
from data_prep.dataset.manifest import DatasetManifest


def log_incident(tracker: Tracker, incident: Path) -> None:
    """Upload an incident's files, but no weights: they stay in the run's folder, where a replay finds them."""
    for file in sorted(incident.iterdir()):
        if file.name != WEIGHTS:
            tracker.log_artifact(file, _folder_of(incident))


def log_new_incidents(tracker: Tracker, folder: RunFolder) -> None:
    """Log what others have recorded since: the supervisor finds hangs, and has no tracker."""
    found = read_incidents(folder.incidents)
    if not found:
        return
    known = artifact_folders(journal_path(folder.path))
    for incident in found:
        if _folder_of(incident.path) not in known:
            log_incident(tracker, incident.path)
    last = found[-1]
    message = str(last.facts.get("message", ""))
    tracker.set_tags(
        {"incidents": str(len(found)), "incidents.last": f"{last.kind} at step {last.step}: {message}"}
    )


def _folder_of(incident: Path) -> str:
    return f"incidents/{incident.name}"


logger = logging.getLogger(__name__)


class Telemetry(Callback):
    """Hands metrics and the fate of checkpoints to the tracker, which never makes the run wait."""

    def __init__(self, tracker: Tracker, folder: RunFolder, checkpoints: CheckpointLog) -> None:
        self.tracker, self.folder, self.checkpoints = tracker, folder, checkpoints

    def on_start(self, state: TrainState, stop_step: int) -> None:
        self._first = state.step
        self.checkpoints.start(state.step)
        self.tracker.set_tags({STEPS_TAG: str(stop_step)})
        log_new_incidents(self.tracker, self.folder)

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        self.tracker.log_metrics(metrics, state.step)

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        """Log it once: the process before may have died after it had."""
        if state.step != self._first or not self._has(metrics, state.step):
            self.checkpoints.evaluated(self.tracker.log_metrics(metrics, state.step))

    def _has(self, metrics: dict[str, float], step: int) -> bool:
        known = metrics_at(journal_path(self.folder.path), step)
        return all(str(known.get(name)) == str(value) for name, value in metrics.items())  # NaN is NaN

    def on_save(self, event: SaveEvent) -> None:
        self.checkpoints.saw(event)
        if event.kind == "committed":
            self.tracker.set_tags({"checkpoint.latest": event.location, "checkpoint.step": str(event.step)})
            self.tracker.log_metrics({"checkpoint/durable_seconds": event.seconds}, event.step)
        elif event.kind == "failed":
            self.tracker.set_tags({"checkpoint.failure": f"step {event.step}: {event.message}"})

    def on_bad_step(self, bad: BadStep, state: TrainState) -> None:
        self.tracker.log_metrics(
            {
                "numbers/skipped": bad.skipped,
                "numbers/recomputed": bad.recomputed,
                "numbers/rollbacks": bad.rollbacks,
            },
            bad.step,
        )
        tags = {"numbers.last": f"step {bad.step}: {bad.message}: {bad.action}"}
        if bad.incident is not None:
            tags["numbers.incident"] = bad.incident.name
            log_incident(self.tracker, bad.incident)
        self.tracker.set_tags(tags)

    def on_stop(self, reason: str, state: TrainState) -> None:
        """The next start draws the curves."""

    def on_end(self, state: TrainState) -> None:
        """Draw the whole run, from its record: parts before a resume too."""
        series = digest_of(journal_path(self.folder.path)).series
        self.tracker.log_artifact(plot_curves(series, self.folder.plots / "curves.png"), "plots")


class BestModel:
    """Keeps the best weights (averaged or plain, as the evaluation took them) as a bundle ready for use."""

    def __init__(self, job: TrainJob, manifest: DatasetManifest, engine: Engine, folder: RunFolder) -> None:
        self.job, self.manifest, self.engine, self.folder = job, manifest, engine, folder
        self._unwritten: tuple[State, BundleSpec] | None = None

    def metrics(self) -> dict[str, float]:
        """Those of the evaluation that the bundle is of; empty where this run has none that can be read."""
        if not self.folder.best.is_dir():
            return {}
        try:
            provenance = read_spec(self.folder.best).provenance
            ours = provenance.get("identity") == self.folder.identity
            return {name: float(value) for name, value in provenance["metrics"].items()} if ours else {}
        except (TrackingError, AttributeError, KeyError, TypeError, ValueError) as error:
            logger.warning(
                "%s can't be read, so the next evaluation's is the best: %s", self.folder.best, error
            )
            return {}

    def keep(self, state: TrainState) -> None:
        """Write the weights as they are now, with `state.best` as their metrics (collective)."""
        with self.engine.averaged_weights() if self.weights(state) == "average" else nullcontext():
            weights = self.engine.full_model_state()
        if self.engine.world.is_main:
            self._unwritten = weights, self.spec(state)
            self.write()

    def write(self, *, last: bool = False) -> None:
        """Write what the storage has refused so far, on rank 0. That it refuses again costs a line, unless it is the
        `last` time.

        Raises:
            TrackingError: it was the last time.
        """
        if self._unwritten is None:
            return
        try:
            write_bundle(self.folder.best, *self._unwritten)
            self._unwritten = None
        except TrackingError as error:
            if last:
                raise
            logger.warning("%s; training goes on, it is tried again after the next evaluation", error)

    def spec(self, state: TrainState) -> BundleSpec:
        """All that using the model takes beside its weights."""
        return bundle_spec(self.job, self.manifest, self.provenance(state))

    def weights(self, state: TrainState) -> Weights:
        """The weights that `state.best` are the metrics of."""
        return taken_weights(state.best, averages=self.engine.ema is not None)

    def provenance(self, state: TrainState) -> dict[str, Any]:
        """Returns the facts on the model's origin: run, dataset, step, metrics and initial weights."""
        return {
            "run": self.job.name,
            "identity": self.folder.identity,
            "dataset": self.manifest.name,
            "dataset_digest": self.manifest.digest,
            "step": state.step,
            "samples_seen": state.samples_seen,
            "metrics": state.best,
            "weights": self.weights(state),
            **lineage_tags(self.folder.path),
        }
