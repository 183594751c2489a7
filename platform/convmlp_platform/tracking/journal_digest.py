"""A run's journal in bounded memory: curves in a few hundred points each, whatever its length.

It is read a piece at a time. A curve keeps buckets of neighbouring points; when there are too many, each two become
one. So a journal of a million lines costs its reading, and no more memory than one of a thousand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from convmlp_platform.tracking.journal import (
    Artifact,
    CheckpointCommitted,
    CheckpointRetired,
    Dataset,
    MetricsRecord,
    Record,
    Status,
    Tags,
    records_of,
)

MOST_POINTS = 300
"""A curve has at most twice as many buckets."""
_MOST_CURVES = 200
_MOST_MARKS = 600
_MOST_TAGS = 1000


@dataclass(slots=True)
class Bucket:
    """Neighbouring points of a curve: steps first..last, and the values' range, sum and number."""

    first: int
    last: int
    low: float
    high: float
    total: float
    count: int

    @property
    def mean(self) -> float:
        return self.total / self.count

    def take(self, step: int, value: float) -> None:
        """Take one more point, after all others."""
        self.last = step
        self.low, self.high = min(self.low, value), max(self.high, value)
        self.total += value
        self.count += 1

    def joined(self, other: Bucket) -> Bucket:
        """Both as one; `other` comes after this one."""
        return Bucket(
            self.first,
            other.last,
            min(self.low, other.low),
            max(self.high, other.high),
            self.total + other.total,
            self.count + other.count,
        )


@dataclass
class MetricSeries:
    """A metric over steps. Of steps that a restart did again, what the earlier attempt logged is dropped."""

    buckets: list[Bucket] = field(default_factory=list)
    width: int = 1
    """Points a bucket takes."""
    not_finite: int = 0

    def add(self, step: int, value: float) -> None:
        """Take the next point."""
        buckets = self.buckets
        while buckets and buckets[-1].first >= step:
            buckets.pop()
        if not math.isfinite(value):
            self.not_finite += 1
            return
        newest = buckets[-1] if buckets else None
        if newest is not None and newest.count < self.width:
            newest.take(step, value)
            return
        if newest is not None and newest.last >= step:
            newest.last = step - 1
        buckets.append(Bucket(step, step, value, value, value, 1))
        if len(self.buckets) > 2 * MOST_POINTS:
            pairs = zip(self.buckets[::2], self.buckets[1::2], strict=False)
            odd = self.buckets[-1:] if len(self.buckets) % 2 else []
            self.buckets = [*(one.joined(other) for one, other in pairs), *odd]
            self.width *= 2

    @property
    def is_exact(self) -> bool:
        """Whether each bucket is one point."""
        return self.width == 1


@dataclass
class TimeMarks:
    """Moments (unix seconds, step) at which something happened; of many, evenly chosen ones. `count` is of all."""

    kept: list[tuple[float, int]] = field(default_factory=list)
    count: int = 0
    every: int = 1

    def add(self, time: float, step: int) -> None:
        """Take the next moment."""
        if self.count % self.every == 0:
            self.kept.append((time, step))
        self.count += 1
        if len(self.kept) > _MOST_MARKS:
            self.kept, self.every = self.kept[::2], 2 * self.every


@dataclass
class JournalDigest:
    """All that a report needs of a journal. Times are unix seconds."""

    series: dict[str, MetricSeries] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    datasets: dict[tuple[str, str, str], Dataset] = field(default_factory=dict)
    """By name, digest and context."""
    checkpoints: TimeMarks = field(default_factory=TimeMarks)
    evaluations: TimeMarks = field(default_factory=TimeMarks)
    retired: int = 0
    starts: int = 0
    status: Status | None = None
    """The newest."""
    last_step: int = 0
    last_time: float | None = None
    artifacts: int = 0

    def take(self, record: Record) -> None:
        """Follow the journal by one record."""
        seconds = record.time / 1000.0
        self.last_time = seconds if self.last_time is None else max(self.last_time, seconds)
        if isinstance(record, MetricsRecord):
            self._take_metrics(record, seconds)
        elif isinstance(record, Tags):
            room = _MOST_TAGS - len(self.tags)
            known = {name: value for name, value in record.values.items() if name in self.tags}
            fresh = [item for item in record.values.items() if item[0] not in self.tags]
            self.tags |= known | dict(fresh[:room])
        elif isinstance(record, Dataset):
            self.datasets.setdefault((record.name, record.digest, record.context), record)
        elif isinstance(record, CheckpointCommitted):
            self.checkpoints.add(seconds, record.step)
        elif isinstance(record, CheckpointRetired):
            self.retired += 1
        elif isinstance(record, Status):
            self.status = record
            self.starts += record.status == "RUNNING"
        elif isinstance(record, Artifact):
            self.artifacts += 1

    def _take_metrics(self, record: MetricsRecord, seconds: float) -> None:
        self.last_step = max(self.last_step, record.step)
        if any(name.startswith("eval/") for name in record.values):
            self.evaluations.add(seconds, record.step)
        for name, value in record.values.items():
            if name in self.series or len(self.series) < _MOST_CURVES:
                self.series.setdefault(name, MetricSeries()).add(record.step, value)


def digest_of(journal: Path) -> JournalDigest:
    """Read a journal; one that isn't there is empty, a torn last line and damaged ones are left out.

    Raises:
        OSError: it can't be read.
    """
    found = JournalDigest()
    for record in records_of(journal):
        found.take(record)
    return found
