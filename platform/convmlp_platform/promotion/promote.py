"""From a checked job to a decision in the registry's log: the story of a promotion.

Champion and candidate are pinned to versions first, and the decision holds only while the champion is still the one
that was compared with (registry.decision_log). Whatever the verdict is, it is on record.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.promote_job import PromoteJob
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.storage.storage import open_storage
from convmlp_platform.errors import ConfigError, PlatformError
from convmlp_platform.promotion.outcomes import Outcomes
from convmlp_platform.promotion.rules import Measured, judge
from convmlp_platform.registry.decision_log import Decision, who
from convmlp_platform.registry.promotions import PromotionDesk
from convmlp_platform.registry.training_samples import checksums_of_split, seen
from data_prep.dataset.manifest import DatasetManifest
from data_prep.storage.urls import shown

Say = Callable[[str], None]
Measure = Callable[[EvaluateJob, Say], tuple[Outcomes, float | None]]
_ATTEMPTS = 5
"""Comparisons with champions that came meanwhile, before it is given up."""


@dataclass(frozen=True)
class Promotion:
    """The outcome: the decision on record, and whether the alias moved."""

    decision: Decision
    moved: bool


def promote(job: PromoteJob, measure: Measure, say: Say) -> Promotion:
    """Measure the candidate and the champion, judge, and put the decision on record.

    Args:
        job: with resolved paths.
        measure: measures one version in a clean process.
        say: takes a line of progress.

    Raises:
        ConfigError: no such model, candidate, dataset or split; the candidate is champion already.
        TrackingError: the registry doesn't answer; or the alias was moved outside of its log.
    """
    manifest = open_manifest(job.data.path, job.data.digest)
    split = open_split(job, manifest)
    checksums = checksums_of_split(split)
    measured: dict[str, Measured] = {}
    with PromotionDesk(job.tracking, job.model.name, job.model.alias) as desk:
        candidate = desk.version_of(job.model.candidate)

        def measurement(version: str) -> Measured:
            if version not in measured:
                measured[version] = _measured(job, desk, version, checksums, measure, say)
            return measured[version]

        for _ in range(_ATTEMPTS):
            held = desk.champion()
            if held.version == candidate:
                raise ConfigError(
                    f"model.candidate (={job.model.candidate}): models:/{job.model.name}/{candidate} is "
                    f"{job.model.alias} already"
                )
            rival = held.compared_with
            held_by = None if rival is None else measurement(rival)
            verdict = judge(measurement(candidate), held_by, job.rules, manifest.classes)
            evidence = verdict.evidence | _about(job, manifest, held.note)
            decision, moved = desk.decide(
                Decision(
                    kind="promoted" if verdict.moves else "refused",
                    alias=job.model.alias,
                    held=held.version,
                    version=candidate,
                    who=who(),
                    reason=verdict.reason,
                    evidence=evidence,
                )
            )
            if moved or not verdict.moves:
                return Promotion(decision, moved)
            say(f"another version became {job.model.alias} meanwhile: compared again")
    raise ConfigError(
        f"models:/{job.model.name}@{job.model.alias} moved {_ATTEMPTS} times meanwhile: try again"
    )


def open_split(job: PromoteJob, manifest: DatasetManifest) -> ShardedSplit:
    """The images that both are judged on."""
    from convmlp_platform.data.storage.block_cache import CacheOptions

    data = job.data
    cache = CacheOptions(Path(data.cache_dir).expanduser(), data.cache_bytes)
    if data.split not in manifest.splits:
        raise ConfigError(
            f"data.split (={data.split}): the dataset at data.path (={data.path}) has the splits "
            f"{', '.join(sorted(manifest.splits))}"
        )
    storage = open_storage(data.path, manifest, data.split, data.format, cache=cache)
    return ShardedSplit(data.path, manifest, data.split, data.format, verify=data.verify, storage=storage)


def _measured(
    job: PromoteJob, desk: PromotionDesk, version: str, checksums: Any, measure: Measure, say: Say
) -> Measured:
    with tempfile.TemporaryDirectory(prefix="convmlp-samples-") as folder:
        record, why = desk.training_samples(version, Path(folder))
    overlap = None if record is None else np.asarray(seen(checksums, record), np.int64)
    if why:
        say(f"models:/{job.model.name}/{version}: {why}")
    try:
        outcomes, latency = measure(job.evaluation_of(version), say)
    except PlatformError as error:
        if error.cause == "storage":
            raise
        return Measured(version, failure=str(error).splitlines()[0], seen=overlap)
    return Measured(version, outcomes, seen=overlap, latency_ms=latency)


def _about(job: PromoteJob, manifest: DatasetManifest, note: str) -> dict[str, Any]:
    about: dict[str, Any] = {
        "dataset": {
            "name": manifest.name,
            "digest": manifest.digest,
            "split": job.data.split,
            "path": shown(job.data.path),
        },
        "rules": job.rules.model_dump(mode="json"),
        "record": job.name,
    }
    return about | ({"note": note} if note else {})


def evidence_text(decision: Decision) -> bytes:
    """The decision as a file beside the job's record."""
    return json.dumps(decision.facts(), indent=2, allow_nan=False).encode()
