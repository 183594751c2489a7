"""A run on a page: rows of a label and lines, the same for a terminal and for a log."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from convmlp_platform.goodput.account import Goodput
from convmlp_platform.goodput.report_text import NAMES, by_cause
from convmlp_platform.goodput.slices import TimeClass
from convmlp_platform.overview.run_overview import RunOverview, overview_from
from convmlp_platform.overview.run_reader import RunReader
from convmlp_platform.overview.runs_table import score
from convmlp_platform.runs.run_folder import registered_as
from convmlp_platform.runs.run_state import newest_session
from convmlp_platform.tracking.journal import MetricsRecord
from convmlp_platform.training.evaluation.evaluation_record import scores_line
from data_prep.console import rough_duration
from data_prep.storage.json_files import DamagedJson

_SHOWN = 3
"""Evaluations, incidents and checkpoints."""
_LEAST_SHARE = 0.005


@dataclass(frozen=True)
class RunPage:
    """All that is shown of a run.

    Args:
        rows: a label, and its lines; a label without lines isn't there.
    """

    overview: RunOverview
    rows: list[tuple[str, list[str]]]

    @property
    def headline(self) -> str:
        """`NAME: running (starting)`."""
        note = f" ({self.overview.note})" if self.overview.note else ""
        return f"{self.overview.name}: {self.overview.state}{note}"

    @property
    def progress(self) -> str:
        """`step 4,812 of 12,500, 38.5 %, 2 h 14 min left`."""
        found = self.overview
        if found.step is None:
            return "no step yet" + (f", of {found.steps:,}" if found.steps else "")
        parts = [f"step {found.step:,}" + (f" of {found.steps:,}" if found.steps else "")]
        parts += [f"{100 * found.step / found.steps:.1f} %"] if found.steps else []
        parts += [f"{rough_duration(found.left_s)} left"] if found.left_s is not None else []
        return ", ".join(parts)


def page_of(reader: RunReader, name: str, now: float) -> RunPage:
    """The page of what a reader has read, at `now`, unix seconds."""
    overview = overview_from(reader, name, now)
    account = reader.account()
    rows = [
        ("training", _training(reader, now)),
        ("evaluations", _evaluations(reader)),
        ("best", _best(reader, overview)),
        ("workers", _workers(reader, overview)),
        ("goodput", [] if account is None else _goodput(account)),
        ("interrupted", [] if account is None else _interruptions(account, now)),
        ("incidents", _incidents(reader, now)),
        ("checkpoints", _checkpoints(reader, now)),
        ("registered", _registered(reader.run)),
        ("last sign", [] if overview.seen is None else [f"{rough_duration(now - overview.seen)} ago"]),
    ]
    return RunPage(overview, [(label, lines) for label, lines in rows if lines])


def training_line(record: MetricsRecord) -> str:
    """`loss 2.3141  lr 4.80e-04  1,823 img/s  data wait 2 %`."""
    values = record.values
    parts = [f"loss {values['train/loss']:.4f}"]
    if (norm := values.get("train/grad_norm")) is not None:
        parts.append(f"gradient norm {norm:.3g}")
    if (lr := values.get("train/lr")) is not None:
        parts.append(f"lr {lr:.2e}")
    if (speed := values.get("train/images_per_second")) is not None:
        parts.append(f"{speed:,.0f} img/s")
    if (wait := values.get("train/data_wait")) is not None:
        parts.append(f"data wait {wait:.0%}")
    return "  ".join(parts)


def evaluation_line(metrics: Mapping[str, float]) -> str:
    """`top1 61.20 %  loss 1.9021`: what the models are judged by; curves of classes are left out."""
    own = {name.removeprefix("eval/"): value for name, value in metrics.items() if name.startswith("eval/")}
    return scores_line(
        {name: value for name, value in own.items() if "/" not in name and not math.isnan(value)}
    )


def _training(reader: RunReader, now: float) -> list[str]:
    if not reader.journal.training:
        return []
    newest = reader.journal.training[-1]
    return [
        training_line(newest),
        f"after step {newest.step:,}, {rough_duration(now - newest.time / 1000)} ago",
    ]


def _evaluations(reader: RunReader) -> list[str]:
    found = [line for line in reader.evaluations if line.metrics][-_SHOWN:]
    return [f"step {line.step:,}: {evaluation_line(line.metrics)}" for line in reversed(found)]


def _best(reader: RunReader, overview: RunOverview) -> list[str]:
    name = f"eval/{overview.metric}"
    found = next((line for line in reader.evaluations if line.metrics.get(name) == overview.best), None)
    return [] if found is None else [f"{score(overview.metric, overview.best)} after step {found.step:,}"]


def _workers(reader: RunReader, overview: RunOverview) -> list[str]:
    if not reader.logs:
        return []
    header, session = reader.logs[-1].header, newest_session(reader.events)
    lines = [f"{overview.workers} on {header.device}, attempt {header.attempt}"]
    if session is not None and session.attempt is not None:
        hosts = session.attempt.get("hosts")
        named = [f"{host} x {len(list(same))}" for host, same in groupby(sorted(map(str, hosts or ())))]
        lines[0] += f", start {session.attempt.get('start')}" + (f": {', '.join(named)}" if named else "")
    if overview.restarts:
        lines.append(f"restarts: {len(overview.restarts)} ({by_cause(overview.restarts)})")
    return lines


def _goodput(account: Goodput) -> list[str]:
    shares = [(kind, account.share(kind)) for kind in TimeClass if account.share(kind) >= _LEAST_SHARE]
    return [", ".join(f"{100 * share:.1f} % {NAMES[kind]}" for kind, share in shares)] if shares else []


def _interruptions(account: Goodput, now: float) -> list[str]:
    found = list(account.interruptions)
    lines = []
    for one in reversed(found[-_SHOWN:]):
        when = rough_duration(now - (account.history.origin + one.time))
        message = " ".join((one.message or "").split())
        lines.append(f"{when} ago, {one.cause}" + (f": {message}" if message else ""))
    return lines


def _incidents(reader: RunReader, now: float) -> list[str]:
    lines = []
    for one in reversed(reader.incidents[-_SHOWN:]):
        time, message = one.facts.get("time"), " ".join(str(one.facts.get("message") or "").split())
        when = f"{rough_duration(now - time)} ago, " if isinstance(time, int | float) else ""
        lines.append(f"{when}{one.kind} at step {one.step:,}" + (f": {message}" if message else ""))
    return lines


def _checkpoints(reader: RunReader, now: float) -> list[str]:
    """Those that lie in the run's folder; where they lie elsewhere, those that the journal's end tells of."""
    told = reader.journal.committed
    steps = (reader.checkpoints or sorted(told))[-_SHOWN:]
    words = [
        f"step {step:,}" + (f" ({rough_duration(now - told[step].time / 1000)} ago)" if step in told else "")
        for step in reversed(steps)
    ]
    return [", ".join(words)] if words else []


def _registered(run: Path) -> list[str]:
    try:
        uri = registered_as(run)
    except (OSError, DamagedJson):
        return []
    return [] if uri is None else [uri]
