"""The log of a rank's time, on disk: RUN/goodput/attempt-000003/rank-00001.jsonl, for `goodput.account`.

    line 1   the `LogHeader`
    then     {"time": unix seconds, "step": steps done, "phase": now, "seconds": {phase: since the process began}}

Seconds count from the process's begin (its PhaseClock), whichever attempt they belong to: an attempt that begins
within a process, by a rollback, goes on counting, so nothing is counted twice. Lines of saves, evaluations, the start
and the end stay. Between them a tick every 10 s takes the place of the tick before, so a file grows with the number
of checkpoints, not with the hours. Nothing is forced to the disk: a killed process loses what it did since its last
line, at most 10 s; a power cut may lose more, which counts as lost work.

It needs no torch.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from convmlp_platform.health.heartbeat.phases import PhaseClock
from data_prep.storage.json_files import Count, DamagedJson, Seconds, Workers, parse_json, parse_json_lines

logger = logging.getLogger(__name__)

SCHEMA = 1
TICK_SECONDS = 10.0
LINE_BYTES = 320
_Spent = Annotated[Seconds, Field(ge=0.0)]


@dataclass(frozen=True)
class LogHeader:
    """Whose time it is.

    Args:
        attempt, parent, start_step: as in the ledger's header.
        stop_step: the step at which the run ends; None: a release that didn't say.
        start: the driver's number of this start of processes (CONVMLP_START); None: started without a driver.
        began: unix seconds (by this host's clock) at which the process began its START phase.
        price_per_hour: of a worker, in `currency`; None: not told.
    """

    identity: str
    attempt: Count
    parent: Count
    start_step: Count
    rank: Workers
    world_size: Workers
    host: str
    device: str
    pid: Count
    began: Seconds
    start: Count | None = None
    price_per_hour: _Spent | None = None
    currency: str = "USD"
    stop_step: Count | None = None
    schema: int = SCHEMA

    @property
    def process(self) -> tuple[int, str, int, float]:
        """Key that tells processes apart: attempts with the same key are of one process."""
        return self.rank, self.host, self.pid, self.began


@dataclass(frozen=True)
class LogLine:
    """Seconds of each phase (by its name) since the process began, at `time`, with `step` steps done."""

    time: Seconds
    step: Count
    phase: str
    seconds: Mapping[str, _Spent]
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of an evaluation, on rank 0."""

    @property
    def total(self) -> float:
        """Seconds since the process began."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class GoodputFile:
    """The part that is left of a rank's log of one attempt. Its lines are in order, their totals never fall."""

    header: LogHeader
    lines: list[LogLine]


class GoodputWriter:
    """Writes one file. Raises nothing: a storage that refuses costs lines (it warns once), not the run."""

    def __init__(self, folder: Path, header: LogHeader) -> None:
        self.path = folder / f"attempt-{header.attempt:06d}" / f"rank-{header.rank:05d}.jsonl"
        self._descriptor, self._place, self._warned = -1, 0, False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
        except OSError as error:
            self._refused(error)
        self._write(asdict(header), stays=True)

    def line(
        self, clock: PhaseClock, step: int, metrics: Mapping[str, float] | None = None, *, stays: bool
    ) -> None:
        """Record where `clock` stands; what doesn't stay is overwritten by the next line."""
        seconds = {phase.name: round(spent, 6) for phase, spent in clock.read().items() if spent}
        found = {"time": time.time(), "step": step, "phase": clock.phase.name, "seconds": seconds}
        self._write(found | ({"metrics": dict(metrics)} if metrics else {}), stays=stays)

    def close(self) -> None:
        """A second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, content: Mapping[str, Any], *, stays: bool) -> None:
        if self._descriptor < 0:
            return
        text = json.dumps(content, separators=(",", ":")).encode().ljust(LINE_BYTES - 1) + b"\n"
        try:
            written = os.pwrite(self._descriptor, text, self._place)
        except OSError as error:
            self._refused(error)
            return
        self._place += len(text) if stays and written == len(text) else 0

    def _refused(self, error: OSError) -> None:
        if not self._warned:
            logger.warning("goodput: %s can't be written: %s", self.path, error)
        self._warned = True


RANK_0 = "rank-00000.jsonl"


def newest_log(folder: Path) -> GoodputFile | None:
    """Rank 0's file of the newest attempt of a run, as `read_log`; None where there is none."""
    paths = sorted(folder.glob(f"attempt-*/{RANK_0}"))
    return read_log(paths[-1]) if paths else None


def read_logs(folder: Path, ranks: str = "*") -> list[GoodputFile]:
    """A run's files that have a whole header, by attempt and rank; `ranks` is a pattern of their five digits."""
    found = (read_log(path) for path in folder.glob(f"attempt-*/rank-{ranks}.jsonl"))
    return sorted((file for file in found if file), key=lambda file: (file.header.attempt, file.header.rank))


def read_log(path: Path) -> GoodputFile | None:
    """One file; None where its header is lost. Damaged lines are left out.

    Raises:
        OSError: it can't be read.
    """
    first, _, rest = path.read_bytes().partition(b"\n")
    if (header := parse_header(first)) is None:
        return None
    # Not finite: metrics of a run that diverged.
    return GoodputFile(header, list(in_order(parse_json_lines(rest, LogLine, finite=False))))


def parse_header(line: bytes) -> LogHeader | None:
    """A file's first line; None where it is damaged, or of another form."""
    try:
        header = parse_json(line, LogHeader)
    except DamagedJson:
        return None
    return header if header.schema == SCHEMA and header.rank < header.world_size else None


def in_order(lines: Iterable[LogLine | None]) -> Iterator[LogLine]:
    """The lines that are whole (None: damaged), without those whose totals are less than of one before."""
    most = 0.0
    for line in lines:
        if line is not None and line.total >= most:
            most = line.total
            yield line
