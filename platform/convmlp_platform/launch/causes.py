"""What happened to an attempt, from how its processes ended: the cause, the culprit, and one line for people.

Of a group of ranks that fails, most fail because another did: a broken connection, an error of gloo or NCCL. Such a
consequence is never the culprit while anything else is known.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from convmlp_platform.errors import NumbersError, PlatformError

Cause = Literal[
    "finished", "stopped", "preemption", "hardware", "hang", "data", "code", "job", "grow", "numbers"
]
FINAL: frozenset[Cause] = frozenset({"finished", "stopped", "job", "numbers"})
"""After these nothing is started again."""
CHARGED: frozenset[Cause] = frozenset({"preemption", "hardware", "hang", "data", "code"})
"""Causes with a budget (`launch.restarts`)."""
FAILURES = CHARGED - {"preemption"}

_CONSEQUENCE = re.compile(
    r"\bgloo\b|\bnccl\b|Dist(Backend|Network|Store)Error|connection (was )?(closed|reset|refused|aborted)"
    r"|broken pipe|socket (timeout|closed)|ConnectionError|remote process exited",
    re.IGNORECASE,
)
_BROKEN_MACHINE = re.compile(
    r"DataLoader worker .*(killed by signal|exited unexpectedly)|uncorrectable ECC|fallen off the bus"
    r"|Bus error",
    re.IGNORECASE,
)
# What storage may answer today and not tomorrow. A file that isn't there, or may not be read, is the user's to mend.
_PASSING = (
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR,
    errno.EROFS, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ECONNREFUSED, errno.EREMOTEIO,
)  # fmt: skip
_PASSING_TEXTS = tuple(os.strerror(number) for number in _PASSING)


@dataclass(frozen=True)
class Ending:
    """How one rank's process ended.

    Args:
        kind: `finished`; `stopped` (it was told to, and saved); `error` (it raised); `died` (of a signal, or it left
            no word); `lost` (its agent doesn't answer any more).
        at: unix seconds, by the clock of its node (of the driver where it was lost); 0 where it isn't known.
        phase, step: at its last beat.
        signal: that killed it. code: its exit code.
        cause, headline, message, platform, traceback: of an error, see `process.failed`.
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
    lost: str = ""

    @property
    def is_consequence(self) -> bool:
        """Whether this is what the death of another rank looks like."""
        return (
            self.kind == "error"
            and self.cause not in ("job", "numbers")
            and bool(_CONSEQUENCE.search(self.headline))
        )

    @property
    def is_failure(self) -> bool:
        return self.kind not in ("finished", "stopped")


@dataclass(frozen=True)
class Verdict:
    """Why an attempt ended. `message` names the culprit; `headline` is the same for the same error, whoever has it."""

    cause: Cause
    message: str
    headline: str = ""
    culprit: Ending | None = None


def verdict(endings: Sequence[Ending]) -> Verdict:
    """The cause of the end of an attempt that nobody asked to end.

    Args:
        endings: of at least one rank; those that the supervisor has killed are left out.
    """
    failures = [ending for ending in endings if ending.is_failure]
    if not failures:
        told = [ending for ending in endings if ending.kind == "stopped"]
        if not told:
            return Verdict("finished", "all workers have finished")
        first = min(told, key=lambda ending: ending.rank)
        what = f"the workers were told to stop by {first.reason} and have saved step {first.step}"
        return Verdict("preemption", what, "told to stop", first)
    culprit = min(failures, key=lambda ending: (_weight(ending), ending.at, ending.rank))
    return Verdict(_cause(culprit), _sentence(culprit), culprit.headline or _death(culprit), culprit)


def patience(endings: Sequence[Ending]) -> float:
    """Seconds to wait, from the first failure on, for the end of another rank that explains more."""
    least = min((_weight(ending) for ending in endings if ending.is_failure), default=_CONSEQUENCE_WEIGHT)
    # A process that was killed needs no explanation; a node's death is known after a second or two.
    return 0.0 if least == 0 else 5.0 if least == _CONSEQUENCE_WEIGHT else 0.3


def kind_of(error: BaseException) -> Cause:
    """The cause that an exception in a training process stands for."""
    if isinstance(error, NumbersError):
        return "numbers"
    if _BROKEN_MACHINE.search(headline(error)):
        return "hardware"
    if any(_passes(one) for one in _chain(error)):
        return "data"
    return "job" if isinstance(error, PlatformError) else "code"


def headline(error: BaseException) -> str:
    """`Type: first line`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
        return 1 if ending.cause in ("job", "numbers", "hardware") else 2
    aborted = ending.kind == "died" and ending.signal in (None, signal.SIGABRT)
    return 3 if aborted else 0


def _cause(culprit: Ending) -> Cause:
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


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those it was raised from or while handling."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def _passes(error: BaseException) -> bool:
    if type(error).__name__ in ("StorageUnreachable", "Unreachable"):
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING or isinstance(error, (TimeoutError, ConnectionError))
    # An error of a reader process comes as its message alone.
    return isinstance(error, PlatformError) and any(text in str(error) for text in _PASSING_TEXTS)
