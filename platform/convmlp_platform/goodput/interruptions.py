"""The interruptions of a run, and the time that each took: restarts by their cause, and rollbacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from convmlp_platform.goodput.history import CLEAN, History, RunStart
from convmlp_platform.goodput.slices import Part, TimeClass, TimeSlice


@dataclass(frozen=True)
class Interruption:
    """One restart or rollback, and what it took; times in seconds of all workers together.

    Args:
        time: seconds since the run began, of the end of what was interrupted.
        cause: as in the driver's events; `driver`: the driver died; `unknown`: there was no driver to see it;
            `rollback`: within the processes, by the guard.
        downtime_s: wall time from the last sign of progress to the next first step; None: there was none yet.
        detection_s: standing still before it was found.
        restart_s: everything else up to the next first step, compiling included.
        lost_s: work that was done again.
    """

    time: float
    cause: str
    attempt: int | None
    rank: int | None
    host: str | None
    message: str | None
    downtime_s: float | None
    detection_s: float
    restart_s: float
    lost_s: float

    @property
    def seconds(self) -> float:
        return self.detection_s + self.restart_s + self.lost_s


def interruptions_of(history: History, slices: Sequence[TimeSlice]) -> list[Interruption]:
    """In the order of time: restarts after each end that was not the run's, and rollbacks within each start."""
    spent = _Spent(slices)
    found: list[Interruption] = []
    starts = history.starts
    for index, start in enumerate(starts):
        attempts = sorted({file.header.attempt for file in start.files})
        for attempt in attempts[:-1]:
            found.append(_rollback(spent, index, attempt))
        following = starts[index + 1] if index + 1 < len(starts) else None
        goes_on = start.cause is None or start.cause in CLEAN
        if start.cause != "finished" and (following is not None or not goes_on):
            found.append(_restart(spent, index, start, attempts[-1] if attempts else None, following))
    return found


class _Spent:
    """Seconds by start, attempt, part and class."""

    def __init__(self, slices: Sequence[TimeSlice]) -> None:
        self._seconds: dict[int | None, dict[tuple[int | None, Part, TimeClass], float]] = {}
        self.ends: dict[tuple[int | None, int | None], float] = {}
        for piece in slices:
            place = (piece.start, piece.attempt)
            if piece.part == "switch":
                self.ends[place] = max(piece.begin, self.ends.get(place, 0.0))
            for kind, seconds in piece.seconds.items():
                of_start, key = self._seconds.setdefault(piece.start, {}), (piece.attempt, piece.part, kind)
                of_start[key] = of_start.get(key, 0.0) + seconds * len(piece.workers)

    def of(
        self,
        start: int,
        parts: Sequence[Part],
        kinds: Sequence[TimeClass],
        attempts: Sequence[int | None] | None = None,
    ) -> float:
        return fsum(
            seconds
            for (attempt, part, kind), seconds in self._seconds.get(start, {}).items()
            if part in parts and kind in kinds and (attempts is None or attempt in attempts)
        )


_STARTING = (TimeClass.RESTART, TimeClass.COMPILE)


def _rollback(spent: _Spent, index: int, attempt: int) -> Interruption:
    return Interruption(
        time=spent.ends.get((index, attempt), 0.0),
        cause="rollback",
        attempt=attempt,
        rank=None,
        host=None,
        message=None,
        downtime_s=None,
        detection_s=0.0,
        restart_s=spent.of(index, ("switch",), _STARTING, (attempt,)),
        lost_s=spent.of(index, ("run", "switch"), (TimeClass.LOST_WORK,), (attempt,)),
    )


def _restart(
    spent: _Spent, index: int, start: RunStart, attempt: int | None, following: RunStart | None
) -> Interruption:
    end, facts = start.end or start.begin, start.facts
    running = None if following is None else following.running
    return Interruption(
        time=end,
        cause=start.cause or ("unknown" if start.number is None else "driver"),
        attempt=attempt,
        rank=facts.get("rank"),
        host=facts.get("host"),
        message=facts.get("message"),
        downtime_s=None if running is None else running - end + start.stalled,
        detection_s=spent.of(index, ("after",), (TimeClass.RESTART,)),
        restart_s=0.0 if following is None else spent.of(index + 1, ("before", "run"), _STARTING),
        lost_s=spent.of(index, ("run", "after"), (TimeClass.LOST_WORK,), (attempt, None)),
    )
