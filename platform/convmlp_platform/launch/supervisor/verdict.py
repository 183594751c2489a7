"""The verdict on an attempt that has ended: the cause, the culprit, and one line for people. It is decided here alone.

Of a group of ranks that fails, most fail because another did: their collectives break. Such a consequence is never the
culprit while anything else is known. Which errors are consequences, and what each stands for, is said where they are
raised (`distributed.lost_peer`, `errors.cause_of`); nothing here reads a message.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convmlp_platform.errors import Cause, ErrorRecord, LaunchError, PlatformError
from convmlp_platform.health.events import signal_name
from convmlp_platform.health.hangs.hang_watch import Hang
from convmlp_platform.launch.workers.worker_report import Ending

End = Cause | Literal["finished", "stopped", "grow"]
"""The reason why an attempt ended: the cause of a failure, or an end that is not a failure."""
FINAL: frozenset[End] = frozenset({"finished", "stopped", "job", "data", "numbers"})
"""After these nothing is started again."""
_CERTAIN: frozenset[End] = frozenset({"job", "data", "numbers", "hardware"})


@dataclass(frozen=True)
class Order:
    """To end an attempt by saving: why, and when saving may take no longer (by the cluster's monotonic clock)."""

    cause: End
    message: str
    deadline: float


@dataclass(frozen=True)
class FailureVerdict:
    """The reason why an attempt ended.

    `message` names the rank that caused the end. `headline` is the same for the same error, whichever rank has it.
    """

    cause: End
    message: str
    headline: str = ""
    culprit: Ending | None = None

    def error(self, note: str) -> PlatformError:
        """Returns the error that the driver raises if nothing is started again.

        It is the error of a worker as it was, or a `LaunchError` with this verdict.

        Args:
            note: the reason why nothing is started again.
        """
        culprit = self.culprit
        if self.cause in FINAL and culprit is not None:
            record = ErrorRecord("", culprit.cause, culprit.message, culprit.details, culprit.platform)
            error = record.error()
            return (
                error
                if isinstance(error, PlatformError)
                else LaunchError(culprit.message, cause=culprit.cause)
            )
        said = f"{self.message}; {note}"
        if culprit is None:
            return LaunchError(said)
        if culprit.platform is None and culprit.traceback:  # the platform's own errors explain themselves
            said += f"\n{culprit.traceback.rstrip()}"
        return LaunchError(said, cause=cause_of_ending(culprit))


def judge(
    endings: Sequence[Ending], *, step: int, hang: Hang | None, order: Order | None, late: bool
) -> FailureVerdict:
    """Returns the reason why an attempt ended: a hang, an order, or the reason in its processes' ends.

    Args:
        endings: those that the supervisor didn't bring about by killing.
        step: the furthest that a rank was seen at.
        hang: for which the attempt was ended.
        order: that it was given.
        late: whether the order's deadline passed and the processes were killed.
    """
    if hang is not None:
        culprit = Ending(hang.rank, hang.host, "died", phase=hang.phase.name.lower(), step=hang.step)
        return FailureVerdict("hang", hang.message(), "hang", culprit)
    if order is not None and late:
        return FailureVerdict(order.cause, f"{order.message} at step {step}, which was not saved in time")
    found = verdict(endings)
    if order is None or found.cause == "finished":
        return found
    if order.cause == "stopped":
        return FailureVerdict(order.cause, f"{order.message} at step {step}")
    if found.cause in FINAL or found.culprit is None or found.culprit.is_failure:
        return found
    return FailureVerdict(order.cause, f"{order.message}: all workers have saved step {found.culprit.step}")


def verdict(endings: Sequence[Ending]) -> FailureVerdict:
    """The cause of the end of an attempt that nobody asked to end.

    Args:
        endings: of at least one rank; those that the supervisor has killed are left out.
    """
    failures = [ending for ending in endings if ending.is_failure]
    if not failures:
        told = [ending for ending in endings if ending.kind == "stopped"]
        if not told:
            return FailureVerdict("finished", "all workers have finished")
        first = min(told, key=lambda ending: ending.rank)
        what = f"the workers were told to stop by {first.reason} and have saved step {first.step}"
        return FailureVerdict("preemption", what, "told to stop", first)
    culprit = min(failures, key=lambda ending: (_weight(ending), ending.at, ending.rank))
    return FailureVerdict(
        cause_of_ending(culprit), _sentence(culprit), culprit.headline or _death(culprit), culprit
    )


def patience(endings: Sequence[Ending]) -> float:
    """Seconds to wait, from the first failure on, for the end of another rank that explains more."""
    least = min((_weight(ending) for ending in endings if ending.is_failure), default=_CONSEQUENCE_WEIGHT)
    # A process that was killed needs no explanation; a node's death is known after a second or two.
    return 0.0 if least == 0 else 5.0 if least == _CONSEQUENCE_WEIGHT else 0.3


_CONSEQUENCE_WEIGHT = 4


def _weight(ending: Ending) -> int:
    """Smaller explains more. NCCL's watchdog aborts processes whose peers are gone."""
    if ending.is_consequence:
        return _CONSEQUENCE_WEIGHT
    if ending.kind == "error":
        return 1 if ending.cause in _CERTAIN else 2
    aborted = ending.kind == "died" and ending.signal in (None, signal.SIGABRT)
    return 3 if aborted else 0


def cause_of_ending(culprit: Ending) -> Cause:
    """Returns the cause to which the failure of a process is charged."""
    if culprit.kind == "died" and culprit.signal == signal.SIGTERM:
        return "preemption"
    if culprit.kind == "died" and culprit.signal is None:
        return "code"  # os._exit somewhere
    if culprit.kind == "lost" and culprit.cause == "preemption":
        return "preemption"
    return "hardware" if culprit.kind != "error" or culprit.is_consequence else culprit.cause


def _sentence(culprit: Ending) -> str:
    at = f" at step {culprit.step}" if culprit.step else " while starting" if culprit.phase == "start" else ""
    who = f"worker {culprit.rank} on {culprit.host}"
    if culprit.is_consequence:
        return f"{who} lost its connection to the others{at}: {culprit.headline}"
    if culprit.kind == "error":
        return f"{who} failed{at}: {culprit.headline}"
    return f"{who} {_death(culprit)}{at}"


def _death(ending: Ending) -> str:
    if ending.kind == "lost":
        return ending.lost or "doesn't answer any more"
    if ending.signal is None:
        return f"ended with exit code {ending.code} and no word"
    why = ", out of memory" if ending.out_of_memory else ""
    return f"was killed by {signal_name(ending.signal)}{why}"
