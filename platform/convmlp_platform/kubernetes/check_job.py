"""`convmlp k8s check`: what can be known of a job before a cluster costs GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import Job, PrepareJob, TrainJob
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.kubernetes.ask_cluster import missing_in_cluster
from convmlp_platform.kubernetes.options import RenderOptions
from convmlp_platform.kubernetes.pods import AUTH_KEY, AUTH_SECRET, CLAIM, MLFLOW_SECRET, S3_SECRET
from convmlp_platform.kubernetes.render import plan_job
from convmlp_platform.kubernetes.sizes import JobPlan, size_lines
from data_prep.storage.urls import is_url


@dataclass
class KubernetesReport:
    """`problems`: one message each, empty if nothing speaks against the job; `summary`: lines on what it would be."""

    kind: str = ""
    name: str = ""
    problems: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


def check_on_kubernetes(path: Path, options: RenderOptions, *, ask: bool) -> KubernetesReport:
    """Check a job file for Kubernetes. Starts and writes nothing.

    Args:
        path: the job file.
        ask: also ask the cluster that kubectl points at.

    Raises:
        ConfigError: the options or the job are wrong, so that no sizes follow.
    """
    plan, job = plan_job(path, options)
    report = KubernetesReport(job.kind, plan.name)
    _check_job(job, report)
    report.summary += size_lines(plan)
    report.summary += [f"command  {plan.entrypoint}", *_end_lines(plan), *_need_lines(plan)]
    if ask:
        report.problems += missing_in_cluster(plan)
    return report


def _check_job(job: Job, report: KubernetesReport) -> None:
    """The job's own checks, where what it reads can be seen from here; else those that need no data."""
    from convmlp_platform.jobs.kinds import kind_of

    resolved = job.resolved()
    unseen = _unseen(resolved)
    if unseen is None:
        found = kind_of(resolved).preflight(deep=True)
        report.problems += found.problems
        report.summary += found.summary
        return
    report.summary.append(
        f"data     {unseen} isn't here: the driver checks it first (mounted elsewhere? set CONVMLP_ROOT)"
    )
    if isinstance(job, TrainJob):
        from convmlp_platform.training.preflight.preflight import preflight_without_data

        found = preflight_without_data(job)
        report.problems += found.problems
        report.summary += found.summary


def _unseen(job: Job) -> str | None:
    """The dataset or source that can't be seen from this machine; None: it can, or there is none."""
    place = None
    if isinstance(job, SweepJob):
        place = job.job.get("data", {}).get("path")
        place = place and resolve(place, "job.data.path")
    elif isinstance(job, PrepareJob):
        place = getattr(job.source, "path", None)
    elif (data := getattr(job, "data", None)) is not None:
        place = data.path
    if place is None or is_url(str(place)) or Path(place).exists():
        return None
    return str(place)


def _end_lines(plan: JobPlan) -> Iterator[str]:
    options = plan.options
    minutes = f"{options.patience_s / 60:g} minutes"
    held = "in the queue it waits as long as it takes, then " if options.queue else ""
    yield (
        f"ends     {held}given up if its pods don't come within {minutes}; worker pods go as soon as it is done"
        + (f"; ended after {options.deadline_hours:g} hours" if options.deadline_hours is not None else "")
    )
    grace = plan.grace
    yield f"         a worker pod that is told to end has {grace.pod} s, {grace.drain} of them to save"


def _need_lines(plan: JobPlan) -> Iterator[str]:
    needs = [f"Secret {AUTH_SECRET} ({AUTH_KEY})", f"PersistentVolumeClaim {CLAIM}"]
    if plan.options.external:
        needs += [f"Secret {MLFLOW_SECRET} (uri)", f"Secret {S3_SECRET}"]
    if plan.options.priority:
        kind = "WorkloadPriorityClass" if plan.options.queue else "PriorityClass"
        needs.append(f"{kind} {plan.options.priority}")
    if plan.options.queue:
        needs.append(f"LocalQueue {plan.options.queue}")
    yield f"needs    in namespace {plan.options.namespace}: {', '.join(needs)}"
