"""A sweep's trials side by side: `evaluation.compare.find_compared`'s line of each run, with its settings and how it
ended."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convmlp_platform.config.load import flatten
from convmlp_platform.errors import PlatformError
from convmlp_platform.evaluation.compare.compare_runs import compared_run
from convmlp_platform.evaluation.compare.compare_table import NOTHING, Rows, about, label_of, plot
from convmlp_platform.evaluation.compare.compare_table import rows as compared_rows
from convmlp_platform.evaluation.compare.compared import Compared, metric_name
from convmlp_platform.sweep.sweep_plan import PlannedTrial, SweepPlan
from convmlp_platform.sweep.trial_record import plain, read_end
from data_prep.storage.urls import scrubbed


@dataclass(frozen=True)
class SweepRow:
    """A trial. `line` is None where its run never began; `status`: finished, stopped, failed, or unfinished."""

    name: str
    settings: dict[str, Any]
    status: str
    reason: str
    line: Compared | None
    score: float | None

    def to_dict(self) -> dict[str, Any]:
        """In plain values, for JSON."""
        figures = None if self.line is None else self.line.to_dict()
        return {
            "trial": self.name,
            "status": self.status,
            "reason": self.reason,
            "settings": self.settings,
            "score": self.score,
            "run": figures,
        }


def rows_of(plan: SweepPlan) -> list[SweepRow]:
    """From the best trial to the worst; those that never were evaluated come last."""
    sign = -1.0 if plan.sweep.mode == "max" else 1.0

    def place(row: SweepRow) -> tuple[bool, float]:
        return row.score is None, sign * (row.score or 0.0)

    return sorted((_row(one, plan) for one in plan.trials), key=place)


def _row(one: PlannedTrial, plan: SweepPlan) -> SweepRow:
    end, line = read_end(one.run), None
    with contextlib.suppress(PlatformError):
        line = compared_run(one.run, one.name, metric_name(plan.metric))
    score = None if line is None else line.metrics.get(metric_name(plan.metric))
    status, reason = ("unfinished", "") if end is None else (end.status, end.reason)
    values = flatten(one.trial.job)
    varied = {name for other in plan.trials for name in other.trial.settings}
    settings = {name: values[name] for name in varied & values.keys()} | one.trial.settings
    settings = {name: scrubbed(each) if isinstance(each, str) else each for name, each in settings.items()}
    return SweepRow(one.name, settings, status, reason, line, score)


def table(rows: list[SweepRow], plan: SweepPlan) -> Rows:
    """Heading and rows: the trial, how it ended, the settings that differ, then the columns of `compare`."""
    lines = {row.name: row.line for row in rows if row.line is not None}
    heading: list[str] = []
    cells: dict[str, list[str]] = {}
    if lines:
        (_, *heading), *found = compared_rows(list(lines.values()), metric_name(plan.metric))
        cells = {name: row[1:] for name, row in zip(lines, found, strict=True)}
    settings = _settings_shown(rows)
    first = ["trial", *settings, "status"]
    return [
        [*first, *heading],
        *(
            [
                row.name,
                *(str(plain(row.settings[name])) if name in row.settings else NOTHING for name in settings),
                row.status,
                *cells.get(row.name, [NOTHING] * len(heading)),
            ]
            for row in rows
        ),
    ]


def _settings_shown(rows: list[SweepRow]) -> list[str]:
    """Dotted names whose values differ; the model's is a column of its own."""
    names = sorted({name for row in rows for name in row.settings})
    return [
        name
        for name in names
        if name != "model.name" and len({str(row.settings.get(name)) for row in rows}) > 1
    ]


def picture(rows: list[SweepRow], plan: SweepPlan, path: Path) -> Path | None:
    """Draw score against cost into `path`, which is whole or not there; None where there is nothing to draw."""
    lines = [row.line for row in rows if row.line is not None]
    if not lines:
        return None
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    metric = metric_name(plan.metric)
    try:
        drawn = plot(
            lines,
            metric,
            temporary,
            title=f"{plan.sweep.name}: {label_of(metric)} and cost",
            subtitle=about(lines),
        )
        if drawn is None:
            return None
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        return path
    finally:
        temporary.unlink(missing_ok=True)
