"""An evaluation, on one worker of a Ray cluster or in this process; then its run in MLflow.

MLflow may not cost the result: what goes wrong there is said in a line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.load import flatten, parse_job
from convmlp_platform.errors import PlatformError
from convmlp_platform.evaluation.report.table import console_lines
from convmlp_platform.evaluation.result import RESULT_NAME, EvaluationResult
from convmlp_platform.runs.lease import result_lease
from convmlp_platform.tracking.finished_work import EvaluationTracker, FinishedEvaluation
from data_prep import console
from data_prep.storage.urls import shown

if TYPE_CHECKING:
    from convmlp_platform.tracking.provenance.submitted_job import GivenJob


def evaluate(job: EvaluateJob, *, use_ray: bool, given: GivenJob | None = None) -> int:
    """As `evaluated`; returns the exit code."""
    evaluated(job, use_ray=use_ray, given=given)
    return 0


def evaluated(job: EvaluateJob, *, use_ray: bool, given: GivenJob | None = None) -> EvaluationResult:
    """Evaluate a job that has passed its preflight, print its table and log it; returns the result.

    Args:
        given: the file that the job came from, for the record.

    Raises:
        PlatformError: what a user can fix.
    """
    with result_lease(Path(job.output.path) / job.name).hold():
        result = _on_ray(job) if use_ray else _here(job)
        for line in console_lines(result):
            console.say_result(line)
        console.say_result(f"  result    {job.output.path}/{job.name}: table.md, result.json and plots")
        record(job, result, console.say, given)
    return result


def record(
    job: EvaluateJob, result: EvaluationResult, say: Callable[[str], None], given: GivenJob | None = None
) -> str | None:
    """Log the result in the job's folder; the run's id, None where MLflow doesn't have it yet.

    Args:
        say: gets a line for each thing the user should know.
    """
    folder = Path(job.output.path) / job.name
    tracker = EvaluationTracker(job.tracking, _finished(job, result, folder, given))
    try:
        tracker.record()
        run_id = tracker.send()
    except PlatformError as error:
        say(f"  tracking  {error}")
        return None
    say(f"  tracking  MLflow run {run_id} in experiment {job.tracking.experiment}")
    return run_id


def _finished(
    job: EvaluateJob, result: EvaluationResult, folder: Path, given: GivenJob | None
) -> FinishedEvaluation:
    model = result.model
    tags = {
        "task": result.task,
        "model": model.given,
        "model.pinned": model.pinned,
        "model.name": model.name,
        "model.parameters": str(model.parameters),
        "model.image_size": str(model.image_size),
        "device": result.hardware.device,
        "hardware": result.hardware.name,
        "split": result.dataset.split,
        **model.lineage,
    }
    if model.macs is not None:
        tags["model.macs"] = str(model.macs)
    return FinishedEvaluation(
        name=job.name,
        identity=hashlib.sha256((folder / RESULT_NAME).read_bytes()).hexdigest()[:32],
        folder=folder,
        params=flatten(job),
        tags=tags,
        metrics=dict(_metrics(result)),
        version_metrics={name: value for name, value in result.metrics.items() if name != "loss"},
        pinned=model.pinned,
        dataset=result.dataset.name,
        split=result.dataset.split,
        digest=result.dataset.digest,
        source=shown(result.dataset.path),
        seconds=result.seconds,
        artifacts=tuple(result.artifacts),
        rows=result.dataset.images,
        classes=model.num_classes,
        job=job.model_dump(mode="json"),
        given=given,
    )


def _metrics(result: EvaluationResult) -> Iterator[tuple[str, float]]:
    """Under the names that training runs use: `eval/top1`."""
    for name, value in result.metrics.items():
        yield f"eval/{name}", value
    yield "images_per_second", result.dataset.images / result.seconds
    if result.permutation is not None:
        for permuted in result.permutation.rows:
            for name, value in permuted.metrics.items():
                yield f"permuted/{permuted.kind}/{name}", value
    if result.throughput is not None:
        for row in result.throughput.rows:
            yield f"throughput/batch_{row.batch_size}", row.images_per_second


def _here(job: EvaluateJob) -> EvaluationResult:
    from convmlp_platform.evaluation.evaluation_run import run_evaluation

    return run_evaluation(job, console.say)


def _on_ray(job: EvaluateJob) -> EvaluationResult:
    from convmlp_platform.launch.one_worker import one_worker

    with one_worker(job.name, job.launch, job.evaluate.precision) as call:
        return EvaluationResult.model_validate(call(_in_worker, job.model_dump(mode="json")))


def _in_worker(values: dict[str, Any]) -> dict[str, Any]:
    job = parse_job(values, "job")
    assert isinstance(job, EvaluateJob)
    return _here(job).model_dump(mode="json")
