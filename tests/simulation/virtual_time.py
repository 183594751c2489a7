"""Virtual time: a clock that stands still until somebody waits, and the things that happen meanwhile, in order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from convmlp_platform.launch.cluster_view import Clock

EPOCH = 1_900_000_000.0
"""Unix seconds at which virtual time begins."""


class VirtualTime:
    """Seconds since the simulation began.

    `happened`: when the last event was; time without any may be leapt over.
    """

    def __init__(self) -> None:
        self.now, self.happened = 0.0, 0.0
        self.clock = Clock(lambda: self.now, lambda: EPOCH + self.now, self.pass_)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._number = count()

    def at(self, time: float, event: Callable[[], object]) -> None:
        """Have something happen; at once where its time is over."""
        heapq.heappush(self._events, (max(time, self.now), next(self._number), event))

    def after(self, seconds: float, event: Callable[[], object]) -> None:
        """Have something happen so much later."""
        self.at(self.now + seconds, event)

    @property
    def next(self) -> float:
        """When the next thing happens."""
        return self._events[0][0] if self._events else float("inf")

    def to(self, time: float) -> None:
        """Let time pass, and all happen that is due by then."""
        while self._events and self._events[0][0] <= time:
            at, _, event = heapq.heappop(self._events)
            self.now = self.happened = max(self.now, at)
            event()
        self.now = max(self.now, time)

    def pass_(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.to(self.now + seconds)
