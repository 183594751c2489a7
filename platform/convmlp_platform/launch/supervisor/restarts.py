"""Restarts of a run: how many each cause may cost, when one can't help, and how long each took, in parts."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from convmlp_platform.config.sections.resilience import RestartsSection
from convmlp_platform.launch.supervisor.verdict import FINAL, End

CHARGED: frozenset[End] = frozenset({"preemption", "hardware", "hang", "storage", "code"})
"""Causes with a budget (`launch.restarts`)."""
FAILURES = CHARGED - {"preemption"}
# Restarts after storage that failed wait for it, 1, 2, 4, ... seconds.
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True)
class RestartDecision:
    """Whether to start again, `pause_s` seconds from now; `note` says for people what was charged, or why not."""

    restart: bool
    note: str
    pause_s: float = 0.0


@dataclass
class Budgets:
    """The restarts of one driver, by cause, within a sliding window of `section.window_hours`."""

    section: RestartsSection
    totals: Counter[End] = field(default_factory=Counter)
    """All restarts so far, the free ones too."""
    _times: dict[End, deque[float]] = field(default_factory=dict)
    _code_errors: set[str] = field(default_factory=set)
    _outages: int = 0

    def decide(self, cause: End, now: float, *, headline: str = "", stepped: bool = True) -> RestartDecision:
        """Charge a restart for `cause` at `now` (seconds), if there may be one.

        Args:
            headline: of an error of code; the second time that the same one comes it is a crash loop.
            stepped: whether the attempt finished a step; an error of code before that is one at once.
        """
        if cause in FINAL:
            return RestartDecision(False, "")
        if cause == "code" and (headline in self._code_errors or not stepped):
            again = "the same error twice" if headline in self._code_errors else "before the first step"
            return RestartDecision(False, f"{again}: starting again can't help")
        if cause not in CHARGED:
            return self._restart(cause, cause)
        limit = int(getattr(self.section, cause))
        used = self._used(cause, now)
        window = f"{self.section.window_hours:g} h"
        if 0 <= limit <= len(used):
            return RestartDecision(False, f"launch.restarts.{cause} (={limit} in {window}) is used up")
        used.append(now)
        if cause == "code":
            self._code_errors.add(headline)
        return self._restart(cause, f"{cause}: {len(used)}{'' if limit < 0 else f' of {limit}'} in {window}")

    def _restart(self, cause: End, note: str) -> RestartDecision:
        self.totals[cause] += 1
        self._outages = self._outages + 1 if cause == "storage" else 0
        pause = min(2.0 ** (self._outages - 1), _LONGEST_PAUSE_S) if self._outages else 0.0
        return RestartDecision(True, note, pause)

    def _used(self, cause: End, now: float) -> deque[float]:
        used = self._times.setdefault(cause, deque())
        while used and used[0] <= now - 3600 * self.section.window_hours:
            used.popleft()
        return used


@dataclass
class Spare:
    """Agents that are ready and not part of the running attempt.

    To go on with them takes a pause of all that train. It is worth it where they would do more until the next end of
    an attempt, which comes as often as it has so far, than the pause takes from the others. Else they join at that
    end: one worker of a thousand. And it waits until none has come for as long as a pause takes: of nodes that come
    back one by one, not each costs one.

    Args:
        pause_s: what the start of the running attempt took.
        lasts_s: how long attempts last.
    """

    pause_s: float = 0.0
    lasts_s: float = math.inf
    _more: int = 0
    _since: float = 0.0

    def pays(self, more: int, size: int, now: float) -> bool:
        """Whether to go on with `more` than the `size` workers that train; `now` by any clock."""
        if more != self._more:
            self._more, self._since = more, now
        worth = more * self.lasts_s > size * self.pause_s
        return more > 0 and worth and now - self._since >= self.pause_s


# An attempt lasts for as long as attempts of this driver have, as if it had had one of an hour before.
_FIRST_LASTS_S = 3600.0


def attempts_last_s(began: float, ended: int, now: float) -> float:
    """Seconds that an attempt lasts, of a driver that began then and has seen so many end."""
    return (now - began + _FIRST_LASTS_S) / (ended + 1)


STARTING = ("spawn", "join", "load", "first_step")
"""Parts of a recovery that any pause has."""


@dataclass
class Recovery:
    """The cause of the next attempt's recovery, and the durations of its parts; times by the monotonic clock of
    the cluster.

    Args:
        reason: its cause, `start` at first.
        detect: seconds from the failure to the news of it.
        since: the time when the news came.
        judged: the time when all processes were gone and the cause was known.
        placed: the time when all agents were there.
    """

    reason: str = "start"
    detect: float = 0.0
    since: float = 0.0
    judged: float = 0.0
    placed: float = 0.0

    def seconds(self, marks: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The parts, in order; `marks` are the ranks' (see ProcessFiles.marks)."""
        last = {name: max(mark[name] for mark in marks) for name in ("begun", "joined", "loaded", "stepped")}
        parts = {
            "detect": self.detect,
            "stop": self.judged - self.since,
            "place": self.placed - self.judged,
            "spawn": last["begun"],
            "join": last["joined"] - last["begun"],
            "load": last["loaded"] - last["joined"],
            "first_step": last["stepped"] - last["loaded"],
        }
        return {name: round(value, 3) for name, value in parts.items()}
