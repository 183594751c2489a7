"""Work that is done and has a folder, as an MLflow run: a journal beside its files, written at once and sent once.

The journal's id is made of the work, so its run is found again by its tag and logged once, however often it is sent. A
preparation's is made of the job and the dataset's digest, an evaluation's of its result. An evaluation is also logged
as tags of the registered version that it measured.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import (
    Target,
    journal_path,
    load_feed,
    load_target,
    save_target,
    tracking_folder,
    without_secrets,
)
from convmlp_platform.tracking.environment_tags import environment_tags
from convmlp_platform.tracking.journal import (
    Artifact,
    Dataset,
    MetricsRecord,
    ModelInput,
    Params,
    Record,
    Status,
    Tags,
    VersionTags,
    now_ms,
)
from convmlp_platform.tracking.mlflow.feeder import Feeder
from convmlp_platform.tracking.mlflow.server import silence
from convmlp_platform.tracking.mlflow.tracking_uri import tracking_uri
from convmlp_platform.tracking.provenance.code_state import this_code
from convmlp_platform.tracking.provenance.lineage_files import write_facts
from convmlp_platform.tracking.provenance.submitted_job import FOLDER as LINEAGE
from convmlp_platform.tracking.provenance.submitted_job import (
    GivenJob,
    read_submission,
    submission_tags,
    write_submission,
)
from convmlp_platform.tracking.tracker import flatten
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest
from data_prep.storage.files import write_atomically

SEND_SECONDS = 60.0
"""Given to a server that answers; one that fails is given up after 10 s (`replayer.GIVE_UP_SECONDS`)."""


class FinishedWork:
    """Keeps and sends the journal of one piece of work.

    Args:
        section: where to.
        folder: of the work; the journal gets its own folder in it.
        run_name: of the MLflow run.
        identity: hexadecimal digits that no other work has.
        what: "this preparation", for messages.
    """

    def __init__(
        self, section: TrackingTarget, folder: Path, run_name: str, identity: str, *, what: str
    ) -> None:
        self._section, self._folder, self._what = section, folder, what
        self._uri = tracking_uri(section)
        self._target = Target(
            uri=without_secrets(self._uri),
            experiment=section.experiment,
            run_name=run_name,
            journal_id=identity,
            folder=str(folder.absolute()),
        )

    def logged_run(self) -> str | None:
        """The id of the run that has all of this work; None while there is anything to do."""
        if not self.is_recorded or load_target(self._folder) != self._target:
            return None
        return sent_to(self._folder)

    def write_journal(self, records: Iterable[Record]) -> None:
        """Write what is to be sent, unless this work's journal stands there already.

        Raises:
            TrackingError: the folder can't be written.
        """
        try:
            if not self.is_recorded:
                shutil.rmtree(tracking_folder(self._folder), ignore_errors=True)
                tracking_folder(self._folder).mkdir()
                lines = [record.model_dump_json() + "\n" for record in records]
                write_atomically(journal_path(self._folder), "".join(lines).encode())
            save_target(self._folder, self._target)
        except OSError as error:
            raise TrackingError(
                f"{self._what} can't be recorded in {tracking_folder(self._folder)}: {error.strerror or error}"
            ) from None

    def send(self, timeout: float = SEND_SECONDS) -> str:
        """Send what was recorded; the run's id.

        Raises:
            TrackingError: MLflow doesn't take it now; nothing is lost, and the message says how to send it later.
        """
        reason = silence(self._uri)
        if reason is None:
            feeder = Feeder(self._folder, self._uri)
            feeder.ensure_alive()
            if feeder.close(timeout) and (run_id := load_feed(self._folder).run_id):
                return run_id
            reason = "it didn't take everything"
        raise TrackingError(
            f"MLflow at {without_secrets(self._uri)} doesn't have {self._what} yet ({reason}); "
            f"`convmlp replay-tracking {self._folder}` sends it"
        )

    @property
    def is_recorded(self) -> bool:
        """A journal of just this work is there; the target is written after it, so it is whole."""
        try:
            known = load_target(self._folder)
        except TrackingError:
            return False
        return known.journal_id == self._target.journal_id and journal_path(self._folder).is_file()


def sent_to(folder: Path) -> str | None:
    """The id of the run that has all of the journal in this folder; None: some of it isn't sent, or there is none."""
    try:
        target = load_target(folder)
        size = journal_path(folder).stat().st_size
    except (TrackingError, OSError):
        return None
    state = load_feed(folder)
    sent = target.owns(state) and state.has_all(size)
    return state.run_id if sent else None


REGISTERED = "models:/"


@dataclass(frozen=True)
class FinishedEvaluation:
    """The facts of an evaluation that are logged.

    Args:
        name: of the run.
        identity: 32 hexadecimal digits of the result's content.
        folder: where its files lie.
        pinned: the model: `models:/NAME/3` gets tags of its own.
        dataset, split, digest, source, rows, classes: the images; how many they are, and of how many classes.
        metrics: as they are to be called in MLflow.
        version_metrics: those that a registered version is tagged with, by name alone.
    """

    name: str
    identity: str
    folder: Path
    params: Mapping[str, Any]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    version_metrics: Mapping[str, float]
    pinned: str
    dataset: str
    split: str
    digest: str
    source: str
    seconds: float
    artifacts: tuple[str, ...] = field(default_factory=tuple)
    """Files in `folder`."""
    rows: int = 0
    classes: int = 0
    job: Mapping[str, Any] = field(default_factory=dict)
    """All values of the job, as plain JSON."""
    given: GivenJob | None = None
    """The job file that it came from."""


class EvaluationTracker(FinishedWork):
    """Records one evaluation beside its result and sends it to MLflow."""

    def __init__(self, section: TrackingTarget, evaluation: FinishedEvaluation) -> None:
        super().__init__(
            section, evaluation.folder, evaluation.name, evaluation.identity, what="this evaluation"
        )
        self._evaluation = evaluation

    def record(self) -> None:
        """As `write_journal`."""
        self.write_journal(_evaluation_records(self._evaluation, self._section))


def _evaluation_records(evaluation: FinishedEvaluation, section: TrackingTarget) -> Iterable[Record]:
    end = now_ms()
    start = end - round(1000 * evaluation.seconds)
    yield Status(status="RUNNING", time=start)
    yield Params(values=flatten(evaluation.params))
    about = {"kind": "evaluate", "dataset.digest": evaluation.digest, **evaluation.tags}
    with suppress(OSError):  # what can't be written there, `write_facts` tells of
        write_submission(evaluation.folder, evaluation.given)
    about |= submission_tags(read_submission(evaluation.folder))
    yield Tags(values=environment_tags() | about | section.tags)
    yield Dataset(
        name=evaluation.dataset,
        digest=evaluation.digest,
        source=evaluation.source,
        context="evaluation",
        split=evaluation.split,
        rows=evaluation.rows,
        classes=evaluation.classes,
        time=end,
    )
    for path in write_facts(evaluation.folder, evaluation.job, this_code()):
        yield Artifact(source=str(path.absolute()), folder=LINEAGE)
    yield MetricsRecord(step=0, values=dict(evaluation.metrics), time=end)
    for name in evaluation.artifacts:
        yield Artifact(source=str((evaluation.folder / name).absolute()))
    if evaluation.pinned.startswith(REGISTERED):
        model, _, version = evaluation.pinned.removeprefix(REGISTERED).rpartition("/")
        prefix = version_prefix(evaluation.dataset, evaluation.split)
        values = {f"{prefix}.{name}": repr(float(v)) for name, v in evaluation.version_metrics.items()}
        values[f"{prefix}.digest"] = evaluation.digest
        yield ModelInput(
            model=model,
            version=version,
            values=dict(evaluation.metrics),
            dataset=evaluation.dataset,
            dataset_digest=evaluation.digest,
            split=evaluation.split,
            time=end,
        )
        yield VersionTags(model=model, version=version, run_tag=f"{prefix}.run", values=values)
    yield Status(status="FINISHED", time=end)


def version_prefix(dataset: str, split: str) -> str:
    """Of the tags of a registered version: `eval.digits-val`, to which `.top1`, `.run` and `.digest` are added."""
    return f"eval.{dataset}-{split}"


@dataclass(frozen=True)
class Preparation:
    """The facts of a finished preparation that are logged."""

    job: str
    params: Mapping[str, Any]
    """Of the job, by dotted name."""
    folder: Path
    manifest: DatasetManifest
    seconds: float | None = None
    """How long it took; None where it was finished before."""
    artifacts: Sequence[tuple[Path, str]] = field(default_factory=tuple)
    """Files, and the artifact folders they go to, besides the manifest."""

    @property
    def identity(self) -> str:
        """32 hexadecimal digits: the job and the dataset's content, wherever it is tracked or runs."""
        elsewhere = ("tracking.", "launch.", "output.overwrite")
        params = {name: value for name, value in self.params.items() if not name.startswith(elsewhere)}
        text = json.dumps([self.job, self.manifest.digest, params], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class PreparationTracker(FinishedWork):
    """Records one preparation in its dataset's folder and sends it to MLflow."""

    def __init__(self, section: TrackingTarget, preparation: Preparation) -> None:
        super().__init__(
            section, preparation.folder, preparation.job, preparation.identity, what="this preparation"
        )

    def record(self, preparation: Preparation) -> None:
        """As `write_journal`."""
        self.write_journal(_preparation_records(preparation, self._section))


def _preparation_records(preparation: Preparation, section: TrackingTarget) -> Iterable[Record]:
    manifest, folder, end = preparation.manifest, preparation.folder, now_ms()
    start = end - round(1000 * (preparation.seconds or 0))
    yield Status(status="RUNNING", time=start)
    yield Params(values=flatten(preparation.params))
    about = {"kind": "prepare", "identity": preparation.identity, "dataset.digest": manifest.digest}
    yield Tags(values=environment_tags() | about | section.tags)
    yield Dataset(
        name=manifest.name, digest=manifest.digest, source=str(folder), context="preparation", time=end
    )
    yield MetricsRecord(step=0, values=_preparation_metrics(preparation), time=end)
    for path, target in ((folder / MANIFEST_NAME, ""), *preparation.artifacts):
        if path.exists():
            yield Artifact(source=str(path.absolute()), folder=target)
    yield Status(status="FINISHED", time=end)


def _preparation_metrics(preparation: Preparation) -> dict[str, float]:
    manifest = preparation.manifest
    samples = {name: split.num_samples for name, split in manifest.splits.items()}
    rejected = int(manifest.preprocessing.get("num_rejected", 0))
    metrics: dict[str, float] = {"samples": sum(samples.values()), "rejected": rejected}
    metrics |= {f"samples/{name}": count for name, count in samples.items()}
    metrics["classes"] = manifest.num_classes
    for name, count in manifest.preprocessing.get("objects", {}).items():
        metrics[f"objects/{name}"] = count
    for name in manifest.formats:
        shards = [shard for split in manifest.splits.values() for shard in split.formats[name]]
        metrics[f"shards/{name}"] = len(shards)
        metrics[f"bytes/{name}"] = sum(shard.bytes for shard in shards)
    if preparation.seconds:
        metrics["duration_seconds"] = preparation.seconds
        metrics["images_per_second"] = (metrics["samples"] + rejected) / preparation.seconds
    return metrics
