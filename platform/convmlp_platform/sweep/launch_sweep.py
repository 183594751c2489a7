"""The command `convmlp sweep FILE`: it checks every trial's job, trains the trials that aren't done, and compares all.

A sweep keeps no state of its own besides the end of each trial. Started again, it makes the same trials from the same
file and leaves out those that have ended. The others go on from their checkpoints as any run does.

The outputs of a sweep besides its trials' runs: a table, a picture, and a run of its own in MLflow. A row of the table
is the line of a trial's run that `convmlp compare` would show, with the trial's settings and how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convmlp_platform.config.identity import flat_values
from convmlp_platform.config.load import flatten
from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.errors import LaunchError, PlatformError
from convmlp_platform.evaluation.compare.compare_runs import compared_run
from convmlp_platform.evaluation.compare.compare_table import (
    NOTHING,
    Rows,
    about,
    label_of,
    markdown_table,
    plot,
    text_table,
)
from convmlp_platform.evaluation.compare.compare_table import rows as compared_rows
from convmlp_platform.evaluation.compare.compared import Compared, metric_name
from convmlp_platform.evaluation.compare.find_compared import COUNTED
from convmlp_platform.launch.supervisor.signals import Interrupted
from convmlp_platform.runs.find_run import SWEEP_NAME
from convmlp_platform.runs.trial_record import read_end
from convmlp_platform.sweep.sweep_plan import (
    PlannedTrial,
    SweepPlan,
    plain_text,
    room_problems,
    trials_at_a_time,
)
from convmlp_platform.tracking.tracker import Tracker
from data_prep import console
from data_prep.storage.files import write_atomically
from data_prep.storage.json_files import write_json
from data_prep.storage.urls import scrubbed

TABLE, RESULT, PICTURE = "table.md", "result.json", "trade_off.png"
_PARENT_TAG = "mlflow.parentRunId"
# Trials don't wait longer than this for the parent's id; without it they are found by their tag `sweep`.
_WAIT_S, _GOODBYE_S, _SHORT_GOODBYE_S = 30.0, 60.0, 3.0


def launch_sweep(plan: SweepPlan) -> int:
    """Run a planned sweep to its end and print its table; returns the exit code: 0, 1 where a trial has failed,
    128 + the signal that ended it.

    Raises:
        PlatformError: for all that a user can fix, before any trial starts.
    """
    from convmlp_platform.runs.lease import run_lease

    with run_lease(plan.folder).hold() as lost:
        about = {"sweep": plan.sweep.name, "metric": plan.metric, "trials": [one.name for one in plan.trials]}
        write_json(plan.folder / SWEEP_NAME, about)
        parent = SweepParent(plan)
        try:
            if plan.todo:
                _train(plan, parent, lost.is_set)
        except Interrupted as stop:
            parent.close("KILLED")
            console.say(f"stopped by {stop}; the same command goes on with the sweep")
            return 128 + stop.signal_number
        except BaseException:
            parent.close("FAILED")
            raise
        return parent.finish()


def _train(plan: SweepPlan, parent: SweepParent, lost: Callable[[], bool]) -> None:
    from convmlp_platform.launch.cluster import capacity
    from convmlp_platform.launch.cluster.connect import connect
    from convmlp_platform.launch.cluster.worker_environment import shared_env_vars

    jobs = [planned.trial.job for planned in plan.todo]
    threads = max(job.launch.cpus_per_worker for job in jobs)
    env_vars = shared_env_vars(threads=threads, own_modules=any(job.callbacks for job in jobs))
    with connect(jobs[0].launch.address, env_vars) as cluster:
        if problems := room_problems(plan, cluster):
            raise LaunchError("\n".join(problems))
        nodes = capacity.cluster_nodes()
        at_once = trials_at_a_time([one.trial for one in plan.todo], nodes, plan.sweep.max_concurrent)
        before = len(plan.trials) - len(plan.todo)
        console.say(
            f"{plan.sweep.name}: {console.counted(len(plan.trials), 'trial')}"
            f"{f', {before} of them done before' if before else ''}, {at_once} at a time on "
            + (
                "a local Ray"
                if cluster is None
                else f"the Ray cluster of {console.counted(len(nodes), 'node')}"
            )
        )
        from convmlp_platform.sweep.tune import run_trials

        run_trials(plan, nodes, at_once, parent.child_tags, lost)


class SweepParent:
    """The sweep's own run: opened before the first trial starts, so that MLflow shows the trials below it."""

    def __init__(self, plan: SweepPlan) -> None:
        self.plan = plan
        job = plan.trials[0].trial.job
        own = {name: value for name, value in job.tracking.tags.items() if name not in ("sweep", "trial")}
        section = TrackingSection(
            uri=job.tracking.uri, experiment=job.tracking.experiment, tags=own | {"kind": "sweep"}
        )
        self.tracker = Tracker.open(section, run_dir=plan.folder, run_name=plan.sweep.name)
        self.tracker.log_params(flat_values(plan.sweep.model_dump(mode="json", exclude_none=True)))

    @property
    def child_tags(self) -> dict[str, str]:
        """For the trials' runs."""
        parent = self.tracker.wait_for_run_id(_WAIT_S)
        return {} if parent is None else {_PARENT_TAG: parent}

    def close(self, status: Literal["FAILED", "KILLED"]) -> None:
        """The sweep has ended before its end."""
        self.tracker.finish(status, timeout=_SHORT_GOODBYE_S)

    def finish(self) -> int:
        """Write the table, the result and the picture, and print the table; the exit code."""
        rows = rows_of(self.plan)
        files = self._write(rows)
        metric = self.plan.metric
        self.tracker.log_metrics(
            {f"{row.name}/{metric}": row.score for row in rows if row.score is not None}, step=0
        )
        for file in files:
            self.tracker.log_artifact(file)
        failed = [row for row in rows if row.status == "failed"]
        self.tracker.set_tags(
            {"trials": str(len(rows)), "trials.failed": str(len(failed)), "best": rows[0].name}
        )
        self.tracker.finish("FINISHED", timeout=_GOODBYE_S)
        counted = [COUNTED] if any(row.line and row.line.counted for row in rows) else []
        where = f"  table       {self.plan.folder / TABLE}"
        for line in ["", *text_table(table(rows, self.plan)), *counted, "", where]:
            console.say_result(line)
        for row in failed:
            console.say_error(f"trial {row.name}: {row.reason}")
        return 1 if failed else 0

    def _write(self, rows: list[SweepRow]) -> list[Path]:
        folder, sweep = self.plan.folder, self.plan.sweep
        result: dict[str, Any] = {
            "schema_version": 1,
            "sweep": sweep.name,
            "metric": self.plan.metric,
            "mode": sweep.mode,
            "trials": [row.to_dict() for row in rows],
        }
        write_atomically(folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
        heading = [
            f"# {sweep.name}",
            "",
            f"Sorted by {self.plan.metric} of each trial's best evaluation.",
            "",
        ]
        notes = [f"- {row.name} failed: {row.reason.partition(chr(10))[0]}" for row in rows if row.reason]
        if any(row.line and row.line.counted for row in rows):
            notes.append(f"\\{COUNTED}")
        lines = [*heading, *markdown_table(table(rows, self.plan)), *([""] if notes else []), *notes]
        write_atomically(folder / TABLE, ("\n".join(lines) + "\n").encode())
        drawn = picture(rows, self.plan, folder / PICTURE)
        return [folder / TABLE, folder / RESULT, *([drawn] if drawn else [])]


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
                *(plain_text(row.settings[name]) if name in row.settings else NOTHING for name in settings),
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
