"""The account of a run's time and of its cost: every second of every worker is of one class.

The seconds of all classes add up to the time under a driver times the workers that were asked for, until training has
ended: what rank 0 writes down of the whole, as the last thing it does, stays true. What its processes and its driver
take to leave is `ending_s`, and no part of the account. Neither is the time between two drivers, `down_s`, in which no
worker was there. A worker that was asked for and not there is
idle, and costs nothing; all other time is paid.

It is worked out from files alone (health.events, goodput.goodput_log), while the run goes on or long after.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import fsum
from pathlib import Path
from typing import Any

from convmlp_platform.config.sections.task_section import best_score
from convmlp_platform.goodput.excerpt import read_within
from convmlp_platform.goodput.goodput_log import GoodputFile
from convmlp_platform.goodput.history import History, RunStart, history_of
from convmlp_platform.goodput.interruptions import Interruption, interruptions_of
from convmlp_platform.goodput.slices import TimeClass, TimeSlice, slices_of, surviving_stops
from convmlp_platform.health.events import read_events


@dataclass(frozen=True)
class Price:
    """Of an hour of one worker."""

    per_hour: float
    currency: str = "USD"

    def of(self, seconds: float) -> float:
        return seconds / 3600.0 * self.per_hour


@dataclass(frozen=True)
class Goodput:
    """The account of a run; seconds are those of workers, except for `wall_s`, `down_s` and
    `ending_s`.

    `unrecorded_s`: seconds of which nobody wrote down what they were (a log is missing); they are classified by what
    the other ranks did then, or else as lost work. `accuracy`: the best of all evaluations, per cent, of the metric
    by which the task's models are compared (`accuracy_metric`: top1, box_ap, mask_ap, miou).
    """

    history: History
    slices: Sequence[TimeSlice]
    interruptions: Sequence[Interruption]
    wall_s: float
    down_s: float
    ending_s: float
    unrecorded_s: float
    accuracy: float | None
    price: Price | None
    accuracy_metric: str | None = None

    @cached_property
    def seconds(self) -> dict[TimeClass, float]:
        """Of each class."""
        return _sums(self.slices)

    @cached_property
    def by_worker(self) -> list[dict[TimeClass, float]]:
        """Of each class, for each worker."""
        workers = max((session.workers for session in self.history.sessions), default=0)
        found = [_no_seconds() for _ in range(workers)]
        for piece in self.slices:
            for worker in piece.workers:
                for kind, seconds in piece.seconds.items():
                    found[worker][kind].append(seconds)
        return [_summed(seconds) for seconds in found]

    @cached_property
    def by_start(self) -> list[dict[TimeClass, float]]:
        """Of each class, for each start; without what the driver took to end."""
        found: list[list[TimeSlice]] = [[] for _ in self.history.starts]
        for piece in self.slices:
            if piece.start is not None:
                found[piece.start].append(piece)
        return [_sums(pieces) for pieces in found]

    @property
    def total_s(self) -> float:
        return fsum(self.seconds.values())

    @property
    def paid_s(self) -> float:
        return self.total_s - self.seconds[TimeClass.IDLE]

    def share(self, kind: TimeClass) -> float:
        """0..1 of all time."""
        return self.seconds[kind] / self.total_s if self.total_s else 0.0

    @property
    def goodput(self) -> float:
        """The share of time that went into steps which are part of the result."""
        return self.share(TimeClass.USEFUL_STEP)

    def cost(self, kind: TimeClass | None = None) -> float | None:
        """Returns the cost of a class, or of the run; None without a price."""
        if self.price is None:
            return None
        seconds = self.paid_s if kind is None else 0.0 if kind is TimeClass.IDLE else self.seconds[kind]
        return self.price.of(seconds)

    @property
    def cost_of_last_failure(self) -> float | None:
        """None without a price, or without an interruption."""
        if self.price is None or not self.interruptions:
            return None
        return self.price.of(self.interruptions[-1].seconds)

    @property
    def cost_per_point(self) -> float | None:
        """Cost of a point (per cent) of the best accuracy; None without a price or an evaluation."""
        return None if self.price is None or not self.accuracy else self.price.of(self.paid_s) / self.accuracy

    def metrics(self) -> dict[str, float]:
        """For the run's record: goodput/CLASS (shares), and cost/... where there is a price."""
        found: dict[str, float | None] = {f"goodput/{kind}": self.share(kind) for kind in TimeClass}
        found |= {
            "cost/total": self.cost(),
            "cost/last_failure": self.cost_of_last_failure,
            "cost/accuracy_point": self.cost_per_point,
        }
        return {name: value for name, value in found.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values, for JSON."""
        return {
            "goodput": self.goodput,
            "wall_s": self.wall_s,
            "down_s": self.down_s,
            "ending_s": self.ending_s,
            "worker_s": self.total_s,
            "unrecorded_s": self.unrecorded_s,
            "seconds": dict(self.seconds),
            "share": {kind: self.share(kind) for kind in TimeClass},
            "workers": [dict(found) for found in self.by_worker],
            "starts": [
                _start(start, seconds)
                for start, seconds in zip(self.history.starts, self.by_start, strict=True)
            ],
            "interruptions": [asdict(one) for one in self.interruptions],
            "accuracy": self.accuracy,
            "accuracy_metric": self.accuracy_metric,
            "money": None if self.price is None else self._money(self.price),
        }

    def _money(self, price: Price) -> dict[str, Any]:
        return {
            "price_per_hour": price.per_hour,
            "currency": price.currency,
            "total": self.cost(),
            "classes": {kind: self.cost(kind) for kind in TimeClass},
            "last_failure": self.cost_of_last_failure,
            "accuracy_point": self.cost_per_point,
        }


def account(
    files: Sequence[GoodputFile], events: Iterable[dict[str, Any]], price: Price | None = None
) -> Goodput:
    """The account of what these say. `price` takes the place of the newest attempt's."""
    history = history_of(files, events)
    slices = list(slices_of(history, surviving_stops(files)))
    lengths = [(s.end or s.begin) - s.begin for s in history.sessions]
    whole = (history.sessions[-1].end or 0.0) - history.sessions[0].begin if lengths else 0.0
    wall, left = fsum(lengths), [session.left for session in history.sessions]
    metric, accuracy = _best_accuracy(files)
    return Goodput(
        history,
        slices,
        interruptions_of(history, slices),
        wall,
        max(0.0, whole - wall - fsum(left[:-1])),
        fsum(left),
        fsum((piece.end - piece.begin) * len(piece.workers) for piece in slices if not piece.recorded),
        accuracy,
        price or _price(files),
        metric,
    )


def account_of(run: Path, price: Price | None = None, ranks: str = "*") -> Goodput | None:
    """The account of the run in this folder; None where it has left neither events nor logs.

    Args:
        ranks: a pattern of rank numbers, of five digits, whose logs are read.

    Raises:
        OSError: something that is there can't be read.
    """
    files, events = read_within(run / "goodput", ranks), read_events(run / "events.jsonl")
    return account(files, events, price) if files or events else None


def _sums(slices: Iterable[TimeSlice]) -> dict[TimeClass, float]:
    found = _no_seconds()
    for piece in slices:
        for kind, seconds in piece.seconds.items():
            found[kind].append(seconds * len(piece.workers))
    return _summed(found)


def _no_seconds() -> dict[TimeClass, list[float]]:
    return {kind: [] for kind in TimeClass}


def _summed(found: dict[TimeClass, list[float]]) -> dict[TimeClass, float]:
    return {kind: fsum(seconds) for kind, seconds in found.items()}


def _best_accuracy(files: Sequence[GoodputFile]) -> tuple[str | None, float | None]:
    """The metric and its best value."""
    scores = (best_score(line.metrics) for file in files for line in file.lines)
    found = [score for score in scores if score is not None]
    return max(found, key=lambda score: score[1]) if found else (None, None)


def _price(files: Sequence[GoodputFile]) -> Price | None:
    """Of the newest attempt that has one."""
    for file in reversed(files):
        if file.header.price_per_hour is not None:
            return Price(file.header.price_per_hour, file.header.currency)
    return None


def _start(start: RunStart, seconds: dict[TimeClass, float]) -> dict[str, Any]:
    return {
        "number": start.number,
        "attempts": sorted({file.header.attempt for file in start.files}),
        "world_size": start.world_size,
        "begin_s": start.begin,
        "end_s": start.end,
        "cause": start.cause,
        "seconds": dict(seconds),
    }
