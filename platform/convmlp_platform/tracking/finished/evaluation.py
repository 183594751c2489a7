"""A finished evaluation as an MLflow run, and as tags of the registered version that it measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    VersionTags,
    now_ms,
)
from convmlp_platform.tracking.tracker import flatten

REGISTERED = "models:/"


@dataclass(frozen=True)
class FinishedEvaluation:
    """The facts of an evaluation that are logged.

    Args:
        name: of the run.
        identity: 32 hexadecimal digits of the result's content.
        folder: where its files lie.
        pinned: the model: `models:/NAME/3` gets tags of its own.
        dataset, split, digest, source: the images.
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


class EvaluationTracker(FinishedWork):
    """Records one evaluation beside its result and sends it to MLflow."""

    def __init__(self, section: TrackingTarget, evaluation: FinishedEvaluation) -> None:
        super().__init__(
            section, evaluation.folder, evaluation.name, evaluation.identity, what="this evaluation"
        )
        self._evaluation = evaluation

    def record(self) -> None:
        """As `write_journal`."""
        self.write_journal(_records(self._evaluation, self._section))


def _records(evaluation: FinishedEvaluation, section: TrackingTarget) -> Iterable[Record]:
    end = now_ms()
    start = end - round(1000 * evaluation.seconds)
    yield Status(status="RUNNING", time=start)
    yield Params(values=flatten(evaluation.params))
    about = {"kind": "evaluate", "dataset.digest": evaluation.digest, **evaluation.tags}
    yield Tags(values=environment_tags() | about | section.tags)
    yield Dataset(
        name=evaluation.dataset,
        digest=evaluation.digest,
        source=evaluation.source,
        context="evaluation",
        time=end,
    )
    yield MetricsRecord(step=0, values=dict(evaluation.metrics), time=end)
    for name in evaluation.artifacts:
        yield Artifact(source=str((evaluation.folder / name).absolute()))
    if evaluation.pinned.startswith(REGISTERED):
        model, _, version = evaluation.pinned.removeprefix(REGISTERED).rpartition("/")
        prefix = version_prefix(evaluation.dataset, evaluation.split)
        values = {f"{prefix}.{name}": repr(float(v)) for name, v in evaluation.version_metrics.items()}
        values[f"{prefix}.digest"] = evaluation.digest
        yield VersionTags(model=model, version=version, run_tag=f"{prefix}.run", values=values)
    yield Status(status="FINISHED", time=end)


def version_prefix(dataset: str, split: str) -> str:
    """Of the tags of a registered version: `eval.digits-val`, to which `.top1`, `.run` and `.digest` are added."""
    return f"eval.{dataset}-{split}"
