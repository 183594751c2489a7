"""A finished data preparation as an MLflow run.

Its journal's id is made of the job and the dataset's digest, so the run of a preparation is found again by its tag
and logged once, however often the job is started over its finished dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.tracking.environment_tags import environment_tags
from convmlp_platform.tracking.finished.finished_work import FinishedWork
from convmlp_platform.tracking.journal import (
    Artifact,
    Dataset,
    MetricsRecord,
    Params,
    Record,
    Status,
    Tags,
    now_ms,
)
from convmlp_platform.tracking.tracker import flatten
from data_prep.dataset.manifest import MANIFEST_NAME, DatasetManifest


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
        self.write_journal(_records(preparation, self._section))


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
    yield MetricsRecord(step=0, values=_metrics(preparation), time=end)
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
