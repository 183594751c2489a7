"""A run's drivers and the starts of training under them, from events.jsonl and the ranks' logs.

Clocks: the driver's decides. Times are seconds since the first of them, so that sums keep their digits. A driver whose
clock is behind the one before counts from where that ended. What a host's clock says is only used within the bounds
that the driver's events leave; how long something took is measured by each process itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from math import inf
from typing import Any

from convmlp_platform.goodput.goodput_log import GoodputFile
from convmlp_platform.health.heartbeat.phases import Phase

# Ends of an attempt that cost no work: the state was saved.
CLEAN = frozenset({"finished", "stopped", "preemption", "grow"})


@dataclass
class RunStart:
    """One start of training processes, from the driver's order to the last of them.

    `number` is the driver's; None without a driver. `running`: when its first step was done, as the driver saw it.
    `cause`: why it ended; None: it goes on, or its driver died with it. `stalled`: seconds before its end in
    which nothing was done any more, until it was found out and all of its processes were gone. `files`: its logs.
    """

    number: int | None
    world_size: int
    begin: float
    end: float | None = None
    running: float | None = None
    cause: str | None = None
    stalled: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    files: list[GoodputFile] = field(default_factory=list)

    def took(self, part: str) -> float:
        """Seconds that a part of getting to its first step took, by the driver."""
        parts = self.facts.get("seconds")
        return max(0.0, _number(parts.get(part)) or 0.0) if isinstance(parts, dict) else 0.0

    def evidence(self, origin: float) -> float:
        """The last moment at which one of its processes is known to have been there."""
        ends = [self.placed(began, origin) + length for began, length in _processes(self.files)]
        return max([self.begin, self.running or 0.0, *ends])

    def closed(self, origin: float) -> float | None:
        """The end of training by the record of its lowest rank, once that is closed; None before, or where the start
        came to another end."""
        if self.cause not in (None, "finished"):
            return None
        logged = [file for file in self.files if file.lines]
        lowest = min((file.header.rank for file in logged), default=0)
        newest = max(
            (file for file in logged if file.header.rank == lowest),
            key=lambda file: file.header.attempt,
            default=None,
        )
        if newest is None or newest.lines[-1].phase != Phase.FINISH.name:
            return None
        return self.placed(newest.header.began, origin) + newest.lines[-1].total

    def placed(self, began: float, origin: float) -> float:
        """When a process began that says it did at unix time `began`: not before its order nor after its first step."""
        return max(self.begin, min(began - origin, inf if self.running is None else self.running))


@dataclass
class Session:
    """The time of one driver, until its training ended; of starts without a driver, each its own. `workers` were asked
    for. `left`: seconds that it took after that, for the processes and itself to end."""

    workers: int
    begin: float
    end: float | None
    starts: list[RunStart]
    last_seen: float
    left: float = 0.0


@dataclass(frozen=True)
class History:
    """Sessions in order, none overlapping; their starts within them, none overlapping, all with an `end`."""

    origin: float
    sessions: list[Session]

    @property
    def starts(self) -> list[RunStart]:
        return [start for session in self.sessions for start in session.starts]


def history_of(files: Sequence[GoodputFile], events: Iterable[dict[str, Any]]) -> History:
    """Put together what the driver saw and what the ranks wrote."""
    usable = [event for event in events if _number(event.get("time")) is not None]
    times = [float(event["time"]) for event in usable] + [file.header.began for file in files]
    origin = min(times, default=0.0)
    sessions = _sessions(usable, origin)
    for group in _groups(files):
        _place(group, sessions, origin)
    sessions.sort(key=lambda session: session.begin)
    _settle(sessions, origin)
    return History(origin, sessions)


def _sessions(events: Sequence[dict[str, Any]], origin: float) -> list[Session]:
    sessions: list[Session] = []
    now, shift = 0.0, 0.0
    for event in events:
        if event["kind"] == "driver_started" or not sessions:
            shift = max(0.0, now - (float(event["time"]) - origin))
            now = max(now, float(event["time"]) - origin + shift)
            sessions.append(Session(_positive(event.get("num_workers"), 1), now, None, [], now))
        now = max(now, float(event["time"]) - origin + shift)
        _apply(event, sessions[-1], now)
    return sessions


def _apply(event: dict[str, Any], session: Session, now: float) -> None:
    session.last_seen = now
    match event["kind"]:
        case "attempt_started":
            world = _positive(event.get("world_size"), session.workers)
            session.starts.append(RunStart(event.get("start"), world, now))
        case "attempt_running":
            if start := _of(event, session):
                start.running = now
                start.facts["seconds"] = event.get("seconds")
        case "attempt_ended":
            if start := _of(event, session):
                start.end, start.cause = now, str(event.get("cause"))
                start.stalled = max(0.0, _number(event.get("stalled_s")) or 0.0)
                start.facts |= {name: event[name] for name in _ENDING if event.get(name) is not None}
        case "driver_ended":
            session.end = now


_ENDING = ("rank", "host", "phase", "step", "message", "incident")


def _of(event: dict[str, Any], session: Session) -> RunStart | None:
    """The start that an event of this session is about: only the last can be open."""
    last = session.starts[-1] if session.starts else None
    return last if last is not None and last.number == event.get("start") else None


def _groups(files: Sequence[GoodputFile]) -> list[list[GoodputFile]]:
    """Files by start: attempts that a process has in common were one start's, which rolled back in between."""
    groups: list[list[GoodputFile]] = []
    seen: set[tuple[int, str, int, float]] = set()
    ordered = sorted(files, key=lambda file: (file.header.attempt, file.header.rank))
    for _, attempt in groupby(ordered, key=lambda file: file.header.attempt):
        found = list(attempt)
        processes = {file.header.process for file in found}
        if groups and processes & seen:
            groups[-1] += found
            seen |= processes
        else:
            groups.append(found)
            seen = processes
    return groups


def _place(group: list[GoodputFile], sessions: list[Session], origin: float) -> None:
    """Give a group to the start it was of: the same number, and of these the nearest in time."""
    header = group[0].header
    began = min(file.header.began for file in group) - origin
    world = max(file.header.world_size for file in group)
    starts = [start for session in sessions for start in session.starts]
    same = [s for s in starts if header.start is not None and s.number == header.start]
    if same:
        chosen = min(same, key=lambda start: abs(start.begin - began))
        chosen.files += group
        return
    made = RunStart(header.start, world, began, files=group)
    around = [s for s in sessions if s.begin <= began <= (s.last_seen if s.end is None else s.end)]
    if header.start is not None and around:  # its event was lost, to a full disk for instance
        around[-1].starts.append(made)
        around[-1].starts.sort(key=lambda start: start.begin)
    else:
        sessions.append(Session(world, began, None, [made], began))


def _settle(sessions: list[Session], origin: float) -> None:
    """Give everything an end, and let nothing overlap."""
    now = 0.0
    for session, following in zip_longest(sessions, sessions[1:]):
        session.begin = max(session.begin, now)
        limit = inf if following is None else max(following.begin, session.begin)
        if session.end is not None:
            limit = session.end = max(session.begin, min(session.end, limit))
        now = session.begin
        for start, later in zip_longest(session.starts, session.starts[1:]):
            start.begin = min(max(start.begin, now), limit)
            latest = limit if later is None else min(max(later.begin, start.begin), limit)
            if later is not None and start.cause not in CLEAN:
                start.stalled = max(start.stalled, later.took("detect")) + later.took("stop")
            known = start.evidence(origin) if start.end is None else start.end
            closed = start.closed(origin) if later is None else None
            if closed is not None:
                known = min(known, closed)
            start.end = now = min(max(known, start.begin), latest)
        end = max(now, min(session.last_seen, limit)) if session.end is None else session.end
        ended = bool(session.starts) and session.starts[-1].closed(origin) is not None
        session.end, session.left = (now, end - now) if ended else (end, 0.0)
        session.workers = max([session.workers, *(start.world_size for start in session.starts)])
        now = session.end


def _processes(files: Sequence[GoodputFile]) -> list[tuple[float, float]]:
    """When each process of these says that it began, and how long it is known to have lived."""
    lengths: dict[tuple[int, str, int, float], float] = {}
    for file in files:
        length = file.lines[-1].total if file.lines else 0.0
        lengths[file.header.process] = max(length, lengths.get(file.header.process, 0.0))
    return [(process[3], length) for process, length in lengths.items()]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and abs(value) < inf else None


def _positive(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default
