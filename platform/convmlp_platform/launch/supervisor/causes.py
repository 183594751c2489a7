"""The verdict on an attempt, from how its processes ended: the cause, the culprit, and one line for people.

Of a group of ranks that fails, most fail because another did: their collectives break. Such a consequence is never the
culprit while anything else is known. Which errors are consequences, and what each stands for, is said where they are
raised (`distributed.lost_peer`, `errors.cause_of`); nothing here reads a message.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from convmlp_platform.errors import Cause

End = Cause | Literal["finished", "stopped", "grow"]
"""The reason why an attempt ended: the cause of a failure, or an end that is not a failure."""
FINAL: frozenset[End] = frozenset({"finished", "stopped", "job", "data", "numbers"})
"""After these nothing is started again."""
CHARGED: frozenset[End] = frozenset({"preemption", "hardware", "hang", "storage", "code"})
"""Causes with a budget (`launch.restarts`)."""
FAILURES = CHARGED - {"preemption"}
_CERTAIN: frozenset[End] = frozenset({"job", "data", "numbers", "hardware"})


@dataclass(frozen=True)
class Ending:
    """How one rank's process ended.

    Args:
        kind: `finished`; `stopped` (it was told to, and saved); `error` (it raised); `died` (of a signal, or it left
            no word); `lost` (its agent doesn't answer any more).
        at: unix seconds, by the clock of its node (of the driver where it was lost); 0 where it isn't known.
        phase, step: at its last beat.
        signal: that killed it. code: its exit code.
        cause, headline, message, platform, traceback, details: of an error, see `process.failed`.
        peer: whether the error is a collective that another rank broke.
        lost: what is known of how it was lost; `cause` is preemption where its node was shut down in an orderly way.
    """

    rank: int
    host: str
    kind: Literal["finished", "stopped", "error", "died", "lost"]
    at: float = 0.0
    phase: str = "start"
    step: int = 0
    signal: int | None = None
    code: int | None = None
    out_of_memory: bool = False
    reason: str = ""
    cause: Cause = "code"
    headline: str = ""
    message: str = ""
    platform: str | None = None
    traceback: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    peer: bool = False
    lost: str = ""

    @property
    def is_consequence(self) -> bool:
        """Whether this is what the death of another rank looks like."""
        return self.kind == "error" and self.peer

    @property
    def is_failure(self) -> bool:
        return self.kind not in ("finished", "stopped")


@dataclass(frozen=True)
class FailureVerdict:
    """The reason why an attempt ended.

    `message` names the rank that caused the end. `headline` is the same for the same error, whichever rank has it.
    """

    cause: End
    message: str
    headline: str = ""
    culprit: Ending | None = None


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


def signal_name(number: int) -> str:
    """SIGKILL, or `signal 40`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


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
