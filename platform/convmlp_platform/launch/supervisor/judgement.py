"""The verdict on an attempt that has ended, and the error that ends a run.

How often each cause may restart a run, and when a restart can't help.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from convmlp_platform.config.sections.resilience import RestartsSection
from convmlp_platform.errors import ErrorRecord, LaunchError, PlatformError
from convmlp_platform.launch.supervisor.attempt import Attempt
from convmlp_platform.launch.supervisor.causes import (
    CHARGED,
    FINAL,
    End,
    Ending,
    FailureVerdict,
    cause_of_ending,
    verdict,
)


@dataclass(frozen=True)
class Decision:
    """Whether to start again; `note` says for people what was charged, or why not."""

    restart: bool
    note: str


@dataclass
class Budgets:
    """The restarts of one driver, by cause, within a sliding window of `section.window_hours`."""

    section: RestartsSection
    totals: Counter[End] = field(default_factory=Counter)
    """All restarts so far, the free ones too."""
    _times: dict[End, deque[float]] = field(default_factory=dict)
    _code_errors: set[str] = field(default_factory=set)

    def decide(self, cause: End, now: float, *, headline: str = "", stepped: bool = True) -> Decision:
        """Charge a restart for `cause` at `now` (seconds), if there may be one.

        Args:
            headline: of an error of code; the second time that the same one comes it is a crash loop.
            stepped: whether the attempt finished a step; an error of code before that is one at once.
        """
        if cause in FINAL:
            return Decision(False, "")
        if cause == "code" and (headline in self._code_errors or not stepped):
            again = "the same error twice" if headline in self._code_errors else "before the first step"
            return Decision(False, f"{again}: starting again can't help")
        if cause not in CHARGED:
            self.totals[cause] += 1
            return Decision(True, cause)
        limit = int(getattr(self.section, cause))
        used = self._used(cause, now)
        window = f"{self.section.window_hours:g} h"
        if 0 <= limit <= len(used):
            return Decision(False, f"launch.restarts.{cause} (={limit} in {window}) is used up")
        used.append(now)
        self.totals[cause] += 1
        if cause == "code":
            self._code_errors.add(headline)
        return Decision(True, f"{cause}: {len(used)}{'' if limit < 0 else f' of {limit}'} in {window}")

    def _used(self, cause: End, now: float) -> deque[float]:
        used = self._times.setdefault(cause, deque())
        while used and used[0] <= now - 3600 * self.section.window_hours:
            used.popleft()
        return used


def judge(attempt: Attempt) -> FailureVerdict:
    """Returns the reason why the attempt ended: a hang, an order, or the reason in its processes' ends."""
    hang, order = attempt.hang, attempt.order
    if hang is not None:
        culprit = Ending(hang.rank, hang.host, "died", phase=hang.phase.name.lower(), step=hang.step)
        return FailureVerdict("hang", hang.message(), "hang", culprit)
    if order is not None and attempt.late:
        return FailureVerdict(
            order.cause, f"{order.message} at step {attempt.step}, which was not saved in time"
        )
    found = verdict(attempt.endings)
    if order is None or found.cause == "finished":
        return found
    if order.cause == "stopped":
        return FailureVerdict(order.cause, f"{order.message} at step {attempt.step}")
    if found.cause in FINAL or found.culprit is None or found.culprit.is_failure:
        return found
    return FailureVerdict(order.cause, f"{order.message}: all workers have saved step {found.culprit.step}")


def final_error(found: FailureVerdict, decision: Decision) -> PlatformError:
    """Returns the error that the driver raises if nothing is started again.

    It is the error of a worker as it was, or a `LaunchError` with the last verdict.
    """
    culprit, cause = found.culprit, found.cause
    if cause in FINAL and culprit is not None:
        record = ErrorRecord("", culprit.cause, culprit.message, culprit.details, culprit.platform)
        error = record.error()
        return (
            error if isinstance(error, PlatformError) else LaunchError(culprit.message, cause=culprit.cause)
        )
    said = f"{found.message}; {decision.note}"
    if culprit is None:
        return LaunchError(said)
    if culprit.platform is None and culprit.traceback:  # the platform's own errors explain themselves
        said += f"\n{culprit.traceback.rstrip()}"
    return LaunchError(said, cause=cause_of_ending(culprit))
