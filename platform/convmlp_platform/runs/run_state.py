"""The state of a run, from its driver's events, its lease, its journal's last status, and the end of a trial.

running   a driver has it, and training processes are up or starting
waiting   a driver has it and waits: for room, or before a restart; or nothing has begun yet
silent    whoever had it is on another machine, and gave no sign of life for a while: it may be dead, or cut off
finished  it reached its last step
stopped   it was told to stop, and goes on when it is started again
died      its driver gave up, or is gone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from convmlp_platform.goodput.goodput_log import GoodputFile
from convmlp_platform.goodput.history import CLEAN
from convmlp_platform.health.events import signal_name
from convmlp_platform.runs.trial_record import Ended
from convmlp_platform.tracking.journal import Status
from data_prep.console import rough_duration
from data_prep.storage.locks import STALE_S, LockView

StateName = Literal["running", "waiting", "silent", "finished", "stopped", "died"]
GOING_ON = ("running", "waiting", "silent")
"""States of a run that may do more by itself."""
OF_STATUS: Mapping[str, StateName] = {
    "RUNNING": "running",
    "FINISHED": "finished",
    "KILLED": "stopped",
    "FAILED": "died",
    "SCHEDULED": "waiting",
}
"""MLflow's and a journal's status → state."""
NOT_BEGUN = "has not begun"
"""The note of a run that waits for its first start."""
_SIGNALS = 128


@dataclass(frozen=True)
class RunState:
    """A state, and in a few words what is special about it."""

    name: StateName
    note: str = ""


@dataclass(frozen=True)
class StateFacts:
    """All that decides the state.

    Args:
        events: of all drivers (`health.events`).
        lease: None: nobody has the run.
        status: the last one in the run's journal; None: there is none.
        end: of a trial of a sweep.
        seen: the newest sign of life, unix seconds.
    """

    events: Sequence[Mapping[str, Any]]
    lease: LockView | None
    status: Status | None
    end: Ended | None
    seen: float | None


@dataclass
class DriverSession:
    """What the newest driver wrote into the events."""

    host: str
    pid: int | None
    began: float
    last: float = 0.0
    exit_code: int | None = None
    attempt: Mapping[str, Any] | None = None
    """The newest attempt's beginning."""
    running: bool = False
    """Whether that has done a step."""
    ended: Mapping[str, Any] | None = None
    """That one's end; None: it goes on."""
    causes: list[str] = field(default_factory=list)
    """Of all attempts' ends of all drivers but the run's own end, in their order."""

    @property
    def is_open(self) -> bool:
        """Whether the driver hasn't said that it ended."""
        return self.exit_code is None


def newest_session(events: Sequence[Mapping[str, Any]]) -> DriverSession | None:
    """The newest driver's session; None where no driver wrote an event."""
    session: DriverSession | None = None
    for event in events:
        kind, time = event["kind"], float(event["time"])
        if kind == "driver_started" or session is None:
            causes = session.causes if session else []
            session = DriverSession(str(event.get("host", "")), event.get("pid"), time, causes=causes)
        session.last = time
        if kind == "attempt_started":
            session.attempt, session.running, session.ended = event, False, None
        elif kind == "attempt_running":
            session.running = True
        elif kind == "attempt_ended":
            session.ended = event
            if (cause := str(event.get("cause"))) not in ("finished", "stopped"):
                session.causes.append(cause)
        elif kind == "driver_ended":
            code = event.get("exit_code")
            session.exit_code = code if isinstance(code, int) else 1
    return session


def last_sign(
    lease: LockView | None,
    events: Sequence[Mapping[str, Any]],
    log: GoodputFile | None,
    recorded: float | None,
) -> float | None:
    """The newest sign of life, unix seconds; None: there was none.

    Args:
        log: of rank 0 of the newest attempt.
        recorded: the time of the journal's newest record.
    """
    signs = [lease.renewed if lease else None, recorded]
    signs += [float(events[-1]["time"])] if events else []
    signs += [log.lines[-1].time] if log and log.lines else []
    return max((sign for sign in signs if sign is not None), default=None)


def state_of(facts: StateFacts, now: float) -> RunState:
    """The state at `now`, unix seconds."""
    session, lease = newest_session(facts.events), facts.lease
    if lease is not None and lease.lives is not False:
        if lease.lives or now - lease.renewed <= STALE_S:
            return _held(session, lease)
        return RunState("silent", _silence(facts.seen or lease.renewed, now, lease))
    dead = lease is not None
    if facts.end is not None:
        return _of_trial(facts.end)
    later = (
        facts.status is not None
        and (session is None or not session.is_open)
        and facts.status.time / 1000 > (session.last if session else 0.0) + 1.0
    )
    if session is not None and not later:
        return _of_session(session, facts.status, dead)
    return _of_status(facts, now, dead)


def _held(session: DriverSession | None, lease: LockView) -> RunState:
    """A driver has the run."""
    holder = lease.holder
    if holder is not None and holder.is_stopped:
        return RunState("waiting", str(holder))
    ours = session is not None and session.is_open and (holder is None or session.pid in (None, holder.pid))
    if session is None or not ours:  # under torchrun there are no events
        return RunState("running")
    if session.attempt is None:
        return RunState("waiting", "for workers")
    if session.ended is not None:
        cause = str(session.ended.get("cause"))
        return RunState("waiting", "for workers" if cause in CLEAN else f"restarts after: {_why(session)}")
    return RunState("running", "" if session.running else "starting")


def _silence(seen: float, now: float, lease: LockView | None) -> str:
    where = f" from {lease.holder.host}" if lease is not None and lease.holder is not None else ""
    return f"no sign of life{where} for {rough_duration(now - seen)}"


def _of_trial(end: Ended) -> RunState:
    if end.status == "finished":
        return RunState("finished")
    if end.status == "stopped":
        return RunState("stopped", "by the sweep's scheduler")
    return RunState("died", _first_line(end.reason))


def _of_session(session: DriverSession, status: Status | None, dead: bool) -> RunState:
    """Nobody has the run, and this was its last driver."""
    if session.exit_code == 0:
        return RunState("finished")
    if session.exit_code is None:
        finished = session.ended is not None and session.ended.get("cause") == "finished"
        told = status is not None and status.status == "FINISHED" and status.time / 1000 > session.began
        if finished or told:
            return RunState("finished")
        driver = f"its driver (process {session.pid} on {session.host})" if session.pid else "its driver"
        return RunState("died", f"{driver} is gone")
    if session.exit_code > _SIGNALS:
        return RunState("stopped", f"by {signal_name(session.exit_code - _SIGNALS)}")
    return RunState("died", _why(session) or f"its driver ended with exit code {session.exit_code}")


def _of_status(facts: StateFacts, now: float, dead: bool) -> RunState:
    """The run had no driver that writes events, or a later start without one."""
    status = None if facts.status is None else facts.status.status
    if status is not None and status != "RUNNING":
        return RunState(OF_STATUS[status])
    if dead:
        return RunState("died", "its process is gone")
    if facts.seen is None or status is None:
        return RunState("waiting", NOT_BEGUN)
    if now - facts.seen <= STALE_S:
        return RunState("running")
    return RunState("silent", _silence(facts.seen, now, None))


def _why(session: DriverSession) -> str:
    """The cause of the newest attempt's end, with the driver's words for it."""
    ended = session.ended
    if ended is None or ended.get("cause") in ("finished", "stopped"):
        return ""
    message = _first_line(str(ended.get("message") or ""))
    return f"{ended.get('cause')}: {message}" if message else str(ended.get("cause"))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
