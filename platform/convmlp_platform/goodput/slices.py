"""The time of every worker, moment by moment: a run's history cut into slices whose seconds are of a class each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from math import inf
from typing import Literal

from convmlp_platform.goodput.goodput_log import GoodputFile, LogLine
from convmlp_platform.goodput.history import CLEAN, History, RunStart, Session
from convmlp_platform.health.heartbeat.phases import Phase


class TimeClass(StrEnum):
    """The use of a worker's second. Every second is of one class."""

    USEFUL_STEP = "useful_step"
    """Steps that are part of the result, waiting for the other ranks in them included."""
    EVALUATION = "evaluation"
    DATA_WAIT = "data_wait"
    CHECKPOINT = "checkpoint"
    """Time for which saves stall training; at the end, until the last one is durable and the run's record complete."""
    COMPILE = "compile"
    """A process's first step."""
    RESTART = "restart"
    """From a failure to the first step after it: finding out, new processes, loading; and the first start."""
    LOST_WORK = "lost_work"
    """Whatever was done after the checkpoint that the next attempt went on from."""
    IDLE = "idle"
    """Asked for, but not there; and all workers while the driver ends."""


_CLASS_OF = {
    Phase.START.name: TimeClass.RESTART,
    Phase.COMPILE.name: TimeClass.COMPILE,
    Phase.DATA.name: TimeClass.DATA_WAIT,
    Phase.COMPUTE.name: TimeClass.USEFUL_STEP,
    Phase.UPDATE.name: TimeClass.USEFUL_STEP,
    Phase.EVALUATE.name: TimeClass.EVALUATION,
    Phase.CHECKPOINT.name: TimeClass.CHECKPOINT,
    Phase.FINISH.name: TimeClass.CHECKPOINT,
}
_WORK = frozenset({TimeClass.USEFUL_STEP, TimeClass.EVALUATION, TimeClass.DATA_WAIT, TimeClass.CHECKPOINT})
Part = Literal["before", "run", "switch", "after"]
Seconds = Mapping[TimeClass, float]


@dataclass(frozen=True, slots=True)
class TimeSlice:
    """A stretch of time that these workers each spent in the same way; `seconds`, of one of them, add up to `end` -
    `begin`.

    `start` is the place in History.starts of the start that it belongs to (None: the driver was ending), `attempt`
    the ledger's. `part`: on the way to a start's first process, training, rolling back within a process, or after
    the last line of a process. `recorded`: whether the workers, or the driver, wrote down what this was.
    """

    workers: Sequence[int]
    start: int | None
    attempt: int | None
    part: Part
    begin: float
    end: float
    seconds: Seconds
    recorded: bool = True


def surviving_stops(files: Sequence[GoodputFile]) -> dict[int, float]:
    """Up to which step each attempt's work is part of the result; the newest's all is, as far as one can know.

    It follows the parents from the newest attempt. One that left no log is passed over: the newest before it stands
    in for it.
    """
    headers = {file.header.attempt: file.header for file in files}
    stops: dict[int, float] = {}
    number, stop = max(headers, default=0), inf
    while number in headers:
        stops[number] = stop
        header = headers[number]
        stop = header.start_step
        number = max((known for known in headers if known <= header.parent and known < number), default=0)
    return {number: stops.get(number, -1.0) for number in headers}


def slices_of(history: History, stops: Mapping[int, float]) -> Iterator[TimeSlice]:
    """All workers' time under a driver, once each: seconds sum to each session's length times its workers."""
    first, last = 0, len(history.starts) - 1
    for session in history.sessions:
        now = session.begin
        for index, start in enumerate(session.starts, first):
            yield from _waiting(session, start, index, now)
            yield from _ranks(_Run(start, index, history.origin, stops, index == last))
            now = start.end if start.end is not None else now
        everyone = range(session.workers)
        yield from _whole(everyone, None, "after", now, session.end, TimeClass.IDLE)
        first += len(session.starts)


def _waiting(session: Session, start: RunStart, index: int, now: float) -> Iterator[TimeSlice]:
    """Before a start, and the workers that aren't part of it."""
    present, absent = range(start.world_size), range(start.world_size, session.workers)
    yield from _whole(present, index, "before", now, start.begin, TimeClass.RESTART)
    yield from _whole(absent, index, "before", now, start.end, TimeClass.IDLE)


def _whole(
    workers: Sequence[int], start: int | None, part: Part, begin: float, end: float | None, kind: TimeClass
) -> Iterator[TimeSlice]:
    if workers and end is not None and end > begin:
        yield TimeSlice(workers, start, None, part, begin, end, {kind: end - begin})


@dataclass(frozen=True)
class _Run:
    """A start whose ranks' time is being cut."""

    start: RunStart
    index: int
    origin: float
    stops: Mapping[int, float]
    newest: bool

    @property
    def end(self) -> float:
        return self.start.begin if self.start.end is None else self.start.end

    @property
    def failed(self) -> bool:
        """Whether it ended without saving; one with no known end did, if another followed it."""
        return not self.newest if self.start.cause is None else self.start.cause not in CLEAN


def _ranks(run: _Run) -> Iterator[TimeSlice]:
    """All ranks' time, from the order to start to the end of the last process."""
    everyone = range(run.start.world_size)
    by_rank: dict[int, list[GoodputFile]] = {}
    for file in run.start.files:
        if file.lines:
            by_rank.setdefault(file.header.rank, []).append(file)
    if not by_rank:
        yield from _unlogged(run, everyone)
        return
    missing = [rank for rank in everyone if rank not in by_rank]
    for rank, files in sorted(by_rank.items()):
        for piece in _logged(run, files, (rank,)):
            yield piece
            if missing and rank == min(by_rank):  # what another rank did then: ranks march in step
                yield replace(piece, workers=missing, recorded=piece.part == "before")


def _unlogged(run: _Run, ranks: Sequence[int]) -> Iterator[TimeSlice]:
    """No rank left a log: what came after the first step, if there was one, is taken for lost."""
    begin, end = run.start.begin, run.end
    stepped = end if run.start.running is None else min(max(run.start.running, begin), end)
    yield from _whole(ranks, run.index, "before", begin, stepped, TimeClass.RESTART)
    if end > stepped:
        seconds = {TimeClass.LOST_WORK: end - stepped}
        yield TimeSlice(ranks, run.index, None, "after", stepped, end, seconds, recorded=False)


def _logged(run: _Run, files: Sequence[GoodputFile], rank: Sequence[int]) -> Iterator[TimeSlice]:
    """The time of a rank that wrote these."""
    now = run.start.begin
    marks: list[_Mark] = []
    for began, marks in _processes(files):
        length, room = marks[-1].line.total, run.end - now
        scale = min(1.0, room / length) if length > 0.0 else 1.0
        begin = max(now, min(run.start.placed(began, run.origin), run.end - length * scale))
        yield from _whole(rank, run.index, "before", now, begin, TimeClass.RESTART)
        now = begin
        for before, mark in pairwise([marks[0].origin(), *marks]):
            end = min(begin + mark.line.total * scale, run.end)
            if end > now:
                # Its step was saved before, but the next start evaluates it anew.
                cut_off = run.failed and mark is marks[-1] and mark.line.phase == Phase.EVALUATE.name
                yield _between(run, rank, before, mark, now, end, cut_off=cut_off)
                now = end
    if run.end > now:
        yield _after(run, rank, marks, now)


@dataclass(frozen=True)
class _Mark:
    """A line and the file it is from."""

    file: GoodputFile
    line: LogLine

    def origin(self) -> _Mark:
        """Returns the mark of the process's begin, which has no line in the file: nothing done, no time gone."""
        return _Mark(self.file, LogLine(0.0, self.file.header.start_step, Phase.START.name, {}))


def _processes(files: Sequence[GoodputFile]) -> list[tuple[float, list[_Mark]]]:
    """A rank's processes, by when they say they began, with the lines of all of their attempts."""
    found: dict[tuple[int, str, int, float], list[_Mark]] = {}
    for file in sorted(files, key=lambda file: file.header.attempt):
        marks = found.setdefault(file.header.process, [])
        marks += [_Mark(file, line) for line in file.lines if not marks or line.total >= marks[-1].line.total]
    return sorted((process[3], marks) for process, marks in found.items() if marks)


def _between(
    run: _Run, rank: Sequence[int], before: _Mark, mark: _Mark, begin: float, end: float, *, cut_off: bool
) -> TimeSlice:
    """Returns the slice between two lines of one process; `cut_off`: the process died in the evaluation there."""
    header = before.file.header
    switched = mark.file.header.attempt != header.attempt
    kept = 0.0 if switched else _kept(before.line.step, mark.line.step, run.stops[header.attempt])
    grown = {
        name: max(0.0, spent - before.line.seconds.get(name, 0.0))
        for name, spent in mark.line.seconds.items()
    }
    total = sum(grown.values())
    factor = (end - begin) / total if total > 0.0 else 0.0
    seconds: dict[TimeClass, float] = {} if total > 0.0 else {TimeClass.RESTART: end - begin}
    for name, spent in grown.items():
        if spent:
            going_back = switched and name == Phase.CHECKPOINT.name
            kind = TimeClass.RESTART if going_back else _CLASS_OF.get(name, TimeClass.RESTART)
            _add(seconds, kind, spent * factor, 0.0 if cut_off and kind is TimeClass.EVALUATION else kept)
    part: Part = "switch" if switched else "run"
    return TimeSlice(rank, run.index, header.attempt, part, begin, end, seconds)


def _add(seconds: dict[TimeClass, float], kind: TimeClass, spent: float, kept: float) -> None:
    lost = spent * (1.0 - kept) if kind in _WORK else 0.0
    if spent - lost > 0.0:
        seconds[kind] = seconds.get(kind, 0.0) + spent - lost
    if lost > 0.0:
        seconds[TimeClass.LOST_WORK] = seconds.get(TimeClass.LOST_WORK, 0.0) + lost


def _kept(first: int, last: int, stop: float) -> float:
    """The share of what was done between two lines that counts, where only the steps before `stop` do."""
    if last <= stop:
        return 1.0
    return max(0.0, stop - first) / (last - first) if last > first else 0.0


def _after(run: _Run, rank: Sequence[int], marks: Sequence[_Mark], begin: float) -> TimeSlice:
    """From a rank's last line to the end of the start: the death, and finding out; or leaving."""
    last, spent = marks[-1], run.end - begin
    stepped = last.line.step > last.file.header.start_step or last.line.phase not in _STARTING
    seconds: dict[TimeClass, float] = {}
    if run.failed:
        found_out = min(run.start.stalled, spent) if stepped else spent
        seconds = {TimeClass.RESTART: found_out, TimeClass.LOST_WORK: spent - found_out}
    elif run.start.cause is None:  # it is running now
        _add(seconds, _CLASS_OF.get(last.line.phase, TimeClass.RESTART), spent, 1.0)
    else:
        seconds = {TimeClass.IDLE if run.start.cause == "finished" else TimeClass.RESTART: spent}
    return TimeSlice(rank, run.index, last.file.header.attempt, "after", begin, run.end, seconds)


_STARTING = (Phase.START.name, Phase.COMPILE.name)
