"""A run in a row: its state, how far it is, how long it will take, how good it is, and when it was last heard of."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from convmlp_platform.config.identity import IDENTITY_NAME
from convmlp_platform.config.sections.task_section import BEST_METRICS
from convmlp_platform.goodput.goodput_log import GoodputFile
from convmlp_platform.overview.find_runs import FoundRun
from convmlp_platform.overview.run_reader import ROW_BYTES, RunReader
from convmlp_platform.runs.run_state import (
    GOING_ON,
    RunState,
    StateFacts,
    last_sign,
    newest_session,
    state_of,
)

logger = logging.getLogger(__name__)

_STARTING = ("START", "COMPILE")
_TASK = "classification"


@dataclass(frozen=True, kw_only=True)
class RunOverview:
    """One run, at one moment.

    Args:
        name: from the place that was looked at on; `place`: its folder, or its id in MLflow.
        state: a `StateName`; `damaged`: what every run has is missing or can't be read; `hidden`: this user may not
            read it.
        note: what is special about the state, or what can't be read.
        step, steps: done, and of how many; None: not known.
        left_s: seconds until the last step at the speed of the newest attempt, evaluations included.
        metric, best: by which the task's models are compared, and its best value so far, per cent.
        goodput: 0..1, the share of all workers' time that went into steps which are part of the result.
        workers: of the newest attempt.
        restarts: causes of all that ended an attempt and were no end of the run's, in their order.
        saved: the newest checkpoint's step, where they lie in the run's folder.
        seen: the newest sign of life, unix seconds.
    """

    name: str
    place: str
    state: str
    note: str = ""
    step: int | None = None
    steps: int | None = None
    left_s: float | None = None
    metric: str | None = None
    best: float | None = None
    goodput: float | None = None
    workers: int | None = None
    restarts: tuple[str, ...] = ()
    saved: int | None = None
    seen: float | None = None

    def to_dict(self, now: float) -> dict[str, Any]:
        """Plain values, for JSON; `seen_s` is how long ago the last sign of life was."""
        seen_s = None if self.seen is None else round(max(0.0, now - self.seen), 1)
        return asdict(self) | {"restarts": list(self.restarts), "seen_s": seen_s}


def overview_of(found: FoundRun, now: float) -> RunOverview:
    """Look at one run. Raises nothing: what can't be read is said in its row."""
    if found.problem is not None:
        return RunOverview(name=found.name, place=str(found.path), state="hidden", note=found.problem)
    try:
        return overview_from(RunReader(found.path, ROW_BYTES), found.name, now)
    except Exception as error:  # one run out of fifty is no reason to show none
        logger.debug("%s", found.path, exc_info=True)
        note = f"can't be read: {type(error).__name__}: {error}"
        return RunOverview(name=found.name, place=str(found.path), state="damaged", note=note)


def overview_from(reader: RunReader, name: str, now: float) -> RunOverview:
    """The row of what a reader has read."""
    seen = last_sign(
        reader.lease, reader.events, reader.logs[-1] if reader.logs else None, reader.journal.time
    )
    status = reader.journal.status
    state = state_of(StateFacts(reader.events, reader.lease, status, reader.end, seen), now)
    step, steps = step_of(reader), steps_of(reader.logs)
    metric, best = best_of(reader)
    session = newest_session(reader.events)
    found = RunOverview(
        name=name,
        place=str(reader.run),
        state=state.name,
        note=state.note,
        step=step,
        steps=steps,
        left_s=_left(reader.logs, step, steps, seen, now) if state.name == "running" else None,
        metric=metric,
        best=best,
        goodput=_goodput(reader, state),
        workers=reader.logs[-1].header.world_size if reader.logs else None,
        restarts=tuple(session.causes) if session else (),
        saved=reader.checkpoints[-1] if reader.checkpoints else None,
        seen=seen,
    )
    return _with_problems(found, reader)


def _goodput(reader: RunReader, state: RunState) -> float | None:
    """As training told it when it ended, by the logs of all ranks; else by rank 0's log alone."""
    if state.name == "finished" and reader.journal.goodput is not None:
        return reader.journal.goodput
    account = reader.account()
    return None if account is None or not account.total_s else account.goodput


def _with_problems(found: RunOverview, reader: RunReader) -> RunOverview:
    """A run that somebody has goes on whatever can't be read: its state stays, and the note says it."""
    problems = list(reader.problems)
    goes_on = found.state in GOING_ON and reader.lease is not None
    missing = reader.identity is None and not (reader.run / IDENTITY_NAME).exists()
    if missing and (reader.checkpoints or reader.logs) and not goes_on:
        problems.append(f"{IDENTITY_NAME} is missing")
    if not problems:
        return found
    if goes_on:
        return replace(found, note="; ".join([*filter(None, [found.note]), *problems]))
    return replace(found, state="hidden" if reader.refused else "damaged", note="; ".join(problems))


def step_of(reader: RunReader) -> int | None:
    """Steps that are done, by whichever record is newest."""
    known = [(file.lines[-1].time, file.lines[-1].step) for file in reader.logs[-1:] if file.lines]
    known += [(one.time / 1000, one.step) for one in list(reader.journal.training)[-1:]]
    known += [(one.time / 1000, one.step) for one in list(reader.journal.evaluations)[-1:]]
    if known:
        return max(known)[1]
    return max((line.step for line in reader.evaluations), default=None)


def steps_of(logs: Sequence[GoodputFile]) -> int | None:
    """The step at which the run ends; None where only releases have trained it that didn't record it."""
    return next((file.header.stop_step for file in reversed(logs) if file.header.stop_step is not None), None)


def best_of(reader: RunReader) -> tuple[str, float | None]:
    """The metric by which models of the run's task are compared, and the best value on record, per cent."""
    task = reader.job.get("task")
    name = task.get("name", _TASK) if isinstance(task, dict) else _TASK
    metric = BEST_METRICS.get(str(name), BEST_METRICS[_TASK])
    values = [line.metrics.get(f"eval/{metric}", math.nan) for line in reader.evaluations]
    return metric, max((value for value in values if math.isfinite(value)), default=None)


def _left(
    logs: Sequence[GoodputFile], step: int | None, steps: int | None, seen: float | None, now: float
) -> float | None:
    """Seconds to the end, at the speed of the newest attempt since its first step; None before it can be known."""
    if step is None or steps is None or not logs or len(logs[-1].lines) < 2:
        return None
    first, last = logs[-1].lines[0], logs[-1].lines[-1]
    spent = last.total - first.total
    spent -= sum(last.seconds.get(name, 0.0) - first.seconds.get(name, 0.0) for name in _STARTING)
    if last.step <= first.step or spent <= 0.0:
        return None
    since = max(0.0, now - last.time) if seen is not None and step == last.step else 0.0
    return max(0.0, (steps - step) * spent / (last.step - first.step) - since)
