"""The state of a rank as its beats show it: how far it is among its peers, and how long its steps usually take."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from convmlp_platform.health.phases import Phase

_STEPS = 51
# The first step of a process compiles and allocates; of the next ones two may be lucky.
_FEWEST_STEPS = 3


class BeatState:
    """The progress of a rank. Times are in seconds of one monotonic clock; 0.0 where nothing is known yet.

    `progress` orders the ranks of one attempt, which all go through the same phases: an era begins with each step and
    with its end (evaluation and saves lie between the two), `reached` is the furthest phase of the era, `back` says
    that it was left again. Saves are the exception: some ranks only have something to save, at any place of a step. A
    rank that saves counts as behind the others of its era, because these may wait for it and it for none of them.
    """

    __slots__ = (
        "_begun", "_gap_before", "_recent", "_sorted", "at", "back", "era", "first_step_s", "gap_s", "median_s",
        "micro_batch", "patience_s", "phase", "reached", "step",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.at, self.phase, self.step, self.micro_batch = now, Phase.START, 0, 0
        self.era, self.reached, self.back = 0, Phase.START, False
        self.median_s = self.first_step_s = self.gap_s = self._gap_before = self.patience_s = 0.0
        self._begun: float | None = None
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def longest_gap_s(self) -> float:
        """Between two beats of this evaluation or the one before."""
        return max(self.gap_s, self._gap_before)

    @property
    def progress(self) -> tuple[int, int, int, int, int]:
        """The least of several ranks is behind."""
        return self.era, self.phase is not Phase.CHECKPOINT, self.reached, self.back, self.micro_batch

    def beat(self, now: float, phase: Phase, step: int, micro_batch: int) -> None:
        """The rank is in `phase` and not stuck."""
        if phase is not self.phase:
            self._change(now, phase)
        elif phase is Phase.EVALUATE and now - self.at > self.gap_s:
            self.gap_s = now - self.at
        self.at, self.phase, self.step, self.micro_batch = now, phase, step, micro_batch

    def _change(self, now: float, phase: Phase) -> None:
        if self._begun is None:
            self._begun = now
        if phase is Phase.EVALUATE:
            self._gap_before, self.gap_s = self.gap_s, 0.0
        if phase is Phase.DATA and self.reached is not Phase.DATA:
            self.era, self.reached = self.era + 1, phase
        elif phase > self.reached and phase is not Phase.CHECKPOINT:
            self.reached = phase
        self.back = phase < self.reached

    def step_done(self, now: float, step: int, seconds: float) -> None:
        """`step` steps are done, the last in `seconds`."""
        self.at, self.step, self.micro_batch = now, step, 0
        self.era, self.reached, self.back = self.era + 1, self.phase, False
        if not self.first_step_s:
            self.first_step_s = now - (now if self._begun is None else self._begun)
            return
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > _STEPS:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        if len(self._sorted) >= _FEWEST_STEPS:
            self.median_s = self._sorted[len(self._sorted) // 2]
