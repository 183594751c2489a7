"""The record of a run's evaluations: RUN/evaluations.jsonl, a line at a time. It needs no torch.

    {"step": 120, "attempt": 2, "metrics": {"eval/loss": 1.5, ...}}    the evaluation is done, and on the disk
    {"step": 120, "attempt": 2, "told": true}                     what watches the run has heard of it
    {"step": 480, "attempt": 2, "ended": true}                     so has it of the run's end

`attempt` did the step, as the step's checkpoint says: of a step that was rolled back and done again, each has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.storage.json_files import Count, parse_json_lines

RECORD = "evaluations.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """A line of the record."""

    step: Count
    attempt: Count
    metrics: dict[str, float] = field(default_factory=dict)
    told: bool = False
    ended: bool = False


def read_evaluations(path: Path) -> list[Evaluation]:
    """All whole lines, oldest first; none where there is no file.

    Raises:
        OSError: it can't be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return [line for line in parse_json_lines(content, Evaluation, finite=False) if line is not None]


def metrics_of(path: Path, step: int, attempt: int) -> dict[str, float]:
    """The metrics on record of a step that `attempt` did; empty where it wasn't evaluated."""
    found = [line.metrics for line in read_evaluations(path) if (line.step, line.attempt) == (step, attempt)]
    return next((metrics for metrics in reversed(found) if metrics), {})


def scores_line(scores: Mapping[str, float]) -> str:
    """`top1 61.20 %  loss 1.9021`."""
    return "  ".join(
        f"{name} {value:.4f}" if name == "loss" else f"{name} {value:.2f} %" for name, value in scores.items()
    )
