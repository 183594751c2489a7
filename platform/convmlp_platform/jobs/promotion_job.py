"""A promotion on one worker of a Ray cluster, or in a child process of this one; its record, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.load import parse_job
from convmlp_platform.config.promote_job import PromoteJob
from convmlp_platform.promotion.measure import measure_apart, packed, unpacked
from convmlp_platform.promotion.promote import Measure, Promotion, evidence_text, promote
from convmlp_platform.runs.lease import result_lease
from data_prep import console
from data_prep.storage.files import write_atomically

REFUSED = 3
"""Exit code of a promotion that was judged, and refused."""
RECORD = "decision.json"


def promote_model(job: PromoteJob, *, use_ray: bool) -> int:
    """Promote a job's candidate, or put its refusal on record; the exit code: 0, or 3 where it was refused.

    Args:
        job: with resolved paths.

    Raises:
        PlatformError: what a user can fix; nothing was decided.
    """
    folder = Path(job.output.path) / job.name
    with result_lease(folder).hold():
        with _measuring(job, use_ray) as measure:
            found = promote(job, measure, console.say)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECORD, evidence_text(found.decision))
    for line in _lines(job, found, folder):
        console.say_result(line)
    return 0 if found.moved else REFUSED


def _lines(job: PromoteJob, found: Promotion, folder: Path) -> list[str]:
    decision, name = found.decision, job.model.name
    verdict = (
        f"{job.name}: models:/{name}@{job.model.alias} is version {decision.version} now"
        if found.moved
        else f"{job.name}: refused: version {decision.version} does not become {job.model.alias}"
    )
    return [
        verdict,
        f"  why     {decision.reason}",
        f"  record  decision {decision.number} of `convmlp registry history {name}`, by {decision.who}",
        f"          {folder / RECORD}",
    ]


@contextmanager
def _measuring(job: PromoteJob, use_ray: bool) -> Iterator[Measure]:
    if not use_ray:
        yield measure_apart
        return
    from convmlp_platform.launch.one_worker import one_worker

    with one_worker(job.name, job.launch, job.evaluate.precision) as call:
        yield lambda version, _say: unpacked(call(_in_worker, version.model_dump(mode="json")))


def _in_worker(values: dict[str, Any]) -> bytes:
    job = parse_job(values, "job")
    assert isinstance(job, EvaluateJob)
    return packed(job, console.say)
