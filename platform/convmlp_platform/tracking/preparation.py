"""A finished data preparation as an MLflow run: written into a journal in the dataset's folder, then sent.

The journal's id is made of the job and the dataset's digest, so the run of a preparation is found again by its tag
and logged once, however often the job is started over its finished dataset.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convmlp_platform.config.sections import TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.environment import environment_tags
from convmlp_platform.tracking.feeder import Feeder
from convmlp_platform.tracking.journal import (
    Artifact,
    Dataset,
    Metrics,
    Params,
    Record,
    Status,
    Tags,
    now_ms,
)
from convmlp_platform.tracking.state import (
    Target,
    journal_path,
    load_feed,
    load_target,
    save_target,
    tracking_folder,
    without_secrets,
)
from convmlp_platform.tracking.tracker import flatten
from convmlp_platform.tracking.uri import silence, tracking_uri
from data_prep.files import write_atomically
from data_prep.manifest import MANIFEST_NAME, DatasetManifest

SEND_SECONDS = 60.0
"""Given to a server that answers; one that fails is given up after 10 s (`replayer.GIVE_UP_SECONDS`)."""


@dataclass(frozen=True)
class Preparation:
    """What there is to say of a finished preparation."""

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


class PreparationTracker:
    """Records one preparation in its dataset's folder and sends it to MLflow."""

    def __init__(self, section: TrackingTarget, preparation: Preparation) -> None:
        self._section = section
        self._folder = preparation.folder
        self._uri = tracking_uri(section)
        self._target = Target(
            uri=without_secrets(self._uri),
            experiment=section.experiment,
            run_name=preparation.job,
            journal_id=preparation.identity,
        )

    def logged_run(self) -> str | None:
        """The id of the run that has all of this preparation; None while there is anything to do."""
        state = load_feed(self._folder)
        if not self.is_recorded or load_target(self._folder) != self._target:
            return None
        size = journal_path(self._folder).stat().st_size
        sent = state.address == self._target.address and min(state.values, state.artifacts) >= size
        return state.run_id if sent else None

    def record(self, preparation: Preparation) -> None:
        """Write the journal, unless this preparation's stands there already.

        Raises:
            TrackingError: the folder can't be written.
        """
        try:
            if not self.is_recorded:
                shutil.rmtree(tracking_folder(self._folder), ignore_errors=True)
                tracking_folder(self._folder).mkdir()
                lines = [record.model_dump_json() + "\n" for record in _records(preparation, self._section)]
                write_atomically(journal_path(self._folder), "".join(lines).encode())
            save_target(self._folder, self._target)
        except OSError as error:
            raise TrackingError(
                f"the preparation can't be recorded in {tracking_folder(self._folder)}: {error.strerror or error}"
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
            f"MLflow at {without_secrets(self._uri)} doesn't have this preparation yet ({reason}); "
            f"`convmlp replay-tracking {self._folder}` sends it"
        )

    @property
    def is_recorded(self) -> bool:
        """A journal of just this preparation is there; the target is written after it, so it is whole."""
        try:
            known = load_target(self._folder)
        except TrackingError:
            return False
        return known.journal_id == self._target.journal_id and journal_path(self._folder).is_file()


def _records(preparation: Preparation, section: TrackingTarget) -> Iterable[Record]:
    manifest, folder, end = preparation.manifest, preparation.folder, now_ms()
    start = end - round(1000 * (preparation.seconds or 0))
    yield Status(status="RUNNING", time=start)
    yield Params(values=flatten(preparation.params))
    about = {"kind": "prepare", "identity": preparation.identity, "dataset.digest": manifest.digest}
    yield Tags(values=environment_tags() | about | section.tags)
    yield Dataset(
        name=manifest.name, digest=manifest.digest, source=str(folder), context="preparation", time=end
    )
    yield Metrics(step=0, values=_metrics(preparation), time=end)
    for path, target in ((folder / MANIFEST_NAME, ""), *preparation.artifacts):
        if path.exists():
            yield Artifact(source=str(path.absolute()), folder=target)
    yield Status(status="FINISHED", time=end)


def _metrics(preparation: Preparation) -> dict[str, float]:
    manifest = preparation.manifest
    samples = {name: split.num_samples for name, split in manifest.splits.items()}
    rejected = int(manifest.preprocessing.get("num_rejected", 0))
    metrics: dict[str, float] = {"samples": sum(samples.values()), "rejected": rejected}
    metrics |= {f"samples/{name}": count for name, count in samples.items()}
    metrics["classes"] = manifest.num_classes
    for name in manifest.formats:
        shards = [shard for split in manifest.splits.values() for shard in split.formats[name]]
        metrics[f"shards/{name}"] = len(shards)
        metrics[f"bytes/{name}"] = sum(shard.bytes for shard in shards)
    if preparation.seconds:
        metrics["duration_seconds"] = preparation.seconds
        metrics["images_per_second"] = (metrics["samples"] + rejected) / preparation.seconds
    return metrics
