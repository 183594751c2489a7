"""Opening a run's record in MLflow, and putting its best model into the registry."""

from __future__ import annotations

import io
import json
import logging

import numpy as np

from convmlp_platform.checkpoints.layout import step_name
from convmlp_platform.config.load import flatten
from convmlp_platform.config.paths import REGISTRY_SCHEME
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import ShardedSplit
from convmlp_platform.data.reading.loader import EvalLoader
from convmlp_platform.engine.engine import Engine
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import read_spec
from convmlp_platform.registry.lineage.run_facts import CHANGED_TAG
from convmlp_platform.registry.lineage.version_facts import LOCATION_TAG, STEP_TAG
from convmlp_platform.registry.registry import SEEN_TAG, register_bundle
from convmlp_platform.registry.training_samples import checksums_of_split, record_of, seen
from convmlp_platform.runs.run_folder import RunFolder, checkpoints_of, registered_as
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.environment_tags import environment_tags
from convmlp_platform.tracking.journal import tag_history
from convmlp_platform.tracking.provenance.code_state import CodeState, known_from, this_code
from convmlp_platform.tracking.provenance.lineage_files import write_facts
from convmlp_platform.tracking.provenance.submitted_job import FOLDER, read_submission, submission_tags
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.build.initial_weights import lineage_tags
from convmlp_platform.training.evaluation.evaluate import scores_of, taken_weights
from convmlp_platform.training.outputs.checkpoint_log import CheckpointLog, Evaluated
from convmlp_platform.training.outputs.exactness import computing_tags
from convmlp_platform.training.step_plan import TrainState
from data_prep.dataset.manifest import DatasetManifest
from data_prep.storage.json_files import DamagedJson, write_json
from data_prep.storage.urls import shown

logger = logging.getLogger(__name__)

_MATTERS = (
    "git.commit", "code.trees", "torch.version", "python.version", "cpu.model", "cpu.capability", "torch.threads",
    "world_size", "device",
)  # fmt: skip


def open_tracker(job: TrainJob, manifest: DatasetManifest, folder: RunFolder, engine: Engine) -> Tracker:
    """The run's tracker, with parameters, code, environment and datasets on record. Never waits for a server."""
    code = code_of(folder)
    tracker = Tracker.open(job.tracking, run_dir=folder.path, run_name=job.name, code=code)
    tracker.log_params(flatten(job))
    for split, context in ((job.data.train_split, "training"), (job.data.eval_split, "evaluation")):
        known = manifest.splits.get(split)
        tracker.log_dataset(
            manifest.name,
            manifest.digest,
            shown(job.data.path),
            context,
            split=split,
            rows=0 if known is None else known.num_samples,
            classes=manifest.num_classes,
        )
    for path in write_facts(folder.path, job.model_dump(mode="json"), code):
        tracker.log_artifact(path, FOLDER)
    parent = lineage_tags(folder.path).get("init.pinned", "")
    if parent.startswith(REGISTRY_SCHEME):
        tracker.log_input_model(*parent.removeprefix(REGISTRY_SCHEME).rsplit("/", 1))
    tracker.set_tags(
        {
            "identity": folder.identity,
            "dataset.digest": manifest.digest,
            "dataset.classes": str(manifest.num_classes),
            "world_size": str(engine.world.size),
            "device": engine.world.device.type,
            **computing_tags(),
            **lineage_tags(folder.path),
            **submission_tags(read_submission(folder.path)),
            "model.parameters": str(sum(p.numel() for p in engine.model.parameters())),
        }
    )
    return tracker


def checkpoint_log(
    job: TrainJob, manifest: DatasetManifest, folder: RunFolder, engine: Engine, tracker: Tracker
) -> CheckpointLog:
    """The record of the run's checkpoints, each with the strategy and the number of ranks that wrote it."""
    facts = {"strategy": job.engine.strategy, "world_size": engine.world.size}
    return CheckpointLog(
        tracker, folder.path, Evaluated(manifest.name, manifest.digest, job.data.eval_split), facts
    )


def register_best(
    job: TrainJob,
    folder: RunFolder,
    state: TrainState,
    tracker: Tracker | None,
    loader: EvalLoader,
    trained_on: ShardedSplit,
) -> str | None:
    """Put the best model into the registry, once a run; returns its `models:/...` URI.

    A registry that can't be reached costs the run nothing: the model stays in the run's folder, and starting the
    job again registers it.
    """
    section = job.tracking.register_as
    if section is None or tracker is None:
        return None
    try:
        if (known := registered_as(folder.path)) is not None:
            return known
    except (OSError, DamagedJson) as error:
        logger.warning(
            "the best model was registered before, but as what can't be read: %s; remove the file to register it "
            "again",
            error,
        )
        return None
    samples = record_of(checksums_of_split(trained_on))
    try:
        version = register_bundle(
            job.tracking,
            run_id=tracker.run_id,
            bundle=folder.best,
            example_image=_example(loader),
            metrics=scores_of(state.best),
            tags={
                "dataset.split": job.data.eval_split,
                SEEN_TAG: repr(float(np.mean(seen(checksums_of_split(loader.split), samples)))),
                **environment_tags(code_of(folder)),
                **computing_tags(),
                **lineage_tags(folder.path),
                **submission_tags(read_submission(folder.path)),
                **_changed_facts(folder),
                **_best_checkpoint(job, folder),
                "run": job.name,
                "weights": taken_weights(state.best, averages=job.training.ema_decay is not None),
                "identity": folder.identity,
                "checkpoints": shown(str(checkpoints_of(job))),
            },
            training_samples=samples,
        )
    except TrackingError as error:
        logger.warning("the best model is not registered: %s; it is in %s", error, folder.best)
        return None
    record = {"name": version.name, "version": version.version, "alias": version.alias, "uri": version.uri}
    write_json(folder.registered, record)
    return version.uri


def code_of(folder: RunFolder) -> CodeState:
    """The code that trains the run here, with the commit that its driver knows."""
    submission = read_submission(folder.path)
    return known_from(this_code(), None if submission is None else submission.code)


def _changed_facts(folder: RunFolder) -> dict[str, str]:
    """The facts that weren't the same at every start of the run, with all their values, as one tag; or none."""
    history = tag_history(journal_path(folder.path))
    changed = {name: sorted(history[name]) for name in _MATTERS if len(history.get(name, ())) > 1}
    return {CHANGED_TAG: json.dumps(changed)} if changed else {}


def _best_checkpoint(job: TrainJob, folder: RunFolder) -> dict[str, str]:
    """The step of the registered weights, and where its checkpoint was saved."""
    step = read_spec(folder.best).provenance.get("step")
    if not isinstance(step, int):
        return {}
    place = shown(str(checkpoints_of(job))).rstrip("/")
    return {STEP_TAG: str(step), LOCATION_TAG: f"{place}/{step_name(step)}"}


def _example(loader: EvalLoader) -> bytes:
    """A held-out image as PNG: the model's input example."""
    image, _ = loader.split.image(0)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
