"""The summary of a finished training job for its user: the metrics, and where the weights and records are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.runs.run_folder import REPORT_NAME, run_path
from convmlp_platform.tracking.delivery_state import without_secrets
from convmlp_platform.tracking.mlflow.tracking_uri import tracking_uri

if TYPE_CHECKING:
    from convmlp_platform.training.run import RunResult


def summary_of(result: RunResult) -> dict[str, Any]:
    """A RunResult as plain strings and numbers, readable without any of our classes."""
    return {
        "metrics": {name: float(value) for name, value in result.metrics.items()},
        "best": {name: float(value) for name, value in result.best.items()},
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
        "registered": result.registered,
        "steps": result.steps,
        "already_complete": result.already_complete,
    }


def summary_lines(job: TrainJob, summary: dict[str, Any]) -> list[str]:
    """The lines to print at the end of `job`. The first names the best evaluation's `top1 99.44 %`; `restarts` (cause →
    count) are told where there were any."""
    done = "was complete already" if summary["already_complete"] else "is done"
    lines = [f"{job.name} {done}: {summary['steps']} steps; best evaluation: {_scores(summary['best'])}"]
    if summary["checkpoint"]:
        lines.append(f"  checkpoint  {summary['checkpoint']}")
    if summary["registered"]:
        lines.append(f"  registered  {summary['registered']}")
        lines.append(f"  try it      convmlp predict {summary['registered']} IMAGE...")
    if restarts := summary.get("restarts"):
        told = ", ".join(f"{cause} {count}" for cause, count in sorted(restarts.items()))
        lines.append(f"  restarts    {sum(restarts.values())} ({told})")
    lines += _time(run_path(job))
    if (report := run_path(job) / REPORT_NAME).is_file():
        lines.append(f"  report      {report}")
    lines.append(f"  curves      {run_path(job) / 'plots'}")
    lines.append(f"  metrics     {_where_metrics_are(tracking_uri(job.tracking))}")
    return lines


def _time(run: Path) -> list[str]:
    """Returns lines on how the run spent its time; empty if no record of it can be read."""
    from convmlp_platform.goodput.account import account_of
    from convmlp_platform.goodput.report_text import headline

    try:
        found = account_of(run)
    except OSError:
        return []
    return (
        [] if found is None else [f"  time        {headline(found)}", f"              convmlp goodput {run}"]
    )


def _where_metrics_are(uri: str) -> str:
    uri = without_secrets(uri)
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"


def _scores(metrics: dict[str, float]) -> str:
    named = [
        (name.removeprefix("eval/"), value) for name, value in metrics.items() if name.startswith("eval/")
    ]
    return (
        ", ".join(
            f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.2f} %" for name, value in named
        )
        or "none"
    )
