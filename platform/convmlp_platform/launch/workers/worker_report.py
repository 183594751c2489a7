"""The report of an agent to the supervisor about its training process, and how that process ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from convmlp_platform.errors import Cause
from convmlp_platform.health.heartbeat.heartbeat import Heartbeat
from data_prep.console import pass_on


@dataclass(frozen=True)
class Exit:
    """How the training process ended: `code` as subprocess has it (-9: killed by signal 9), `at` unix seconds;
    `outcome` is what it wrote, see `training_process`."""

    code: int
    at: float
    outcome: dict[str, Any] | None
    out_of_memory: bool
    last_words: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The events that an agent has seen since the last report.

    Args:
        state: the process's state letter in /proc.
        marks: seconds from the fork to `begun`, `joined`, `loaded`, `stepped`, as far as it has come.
        lines: (1 for standard output, 2 for standard error; a line).
        broken: the reason why the agent can start no more processes: the last output of its fork server.
            None: it can.
    """

    start: int
    pid: int | None
    state: str
    heartbeat: Heartbeat | None
    marks: dict[str, float]
    exit: Exit | None
    lines: tuple[tuple[int, str], ...]
    broken: str | None


@dataclass(frozen=True)
class Ending:
    """How one rank's process ended.

    Args:
        kind: `finished`; `stopped` (it was told to, and saved); `error` (it raised); `died` (of a signal, or it left
            no word); `lost` (its agent doesn't answer any more).
        at: unix seconds, by the clock of its node (of the driver where it was lost); 0 where it isn't known.
        phase, step: at its last beat.
        signal: that killed it. code: its exit code.
        cause, headline, message, platform, traceback, details: of an error, see `training_process.failed`.
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


def ending_of(rank: int, host: str, report: Report) -> Ending:
    """How a process ended, from its agent's last report."""
    found, beat = report.exit, report.heartbeat
    assert found is not None
    phase, step = (beat.phase.name.lower(), beat.step) if beat else ("start", 0)
    outcome = found.outcome
    if outcome is None or found.code not in (0, 1):
        killer = -found.code if found.code < 0 else None
        return Ending(
            rank, host, "died", found.at, phase, step, killer, found.code, found.out_of_memory,
            traceback="\n".join(found.last_words),
        )  # fmt: skip
    if outcome["kind"] != "error":
        return Ending(
            rank, host, outcome["kind"], found.at, phase, outcome["step"], reason=outcome["reason"] or ""
        )
    facts = {name: outcome[name] for name in _ERROR_FACTS}
    return Ending(rank, host, "error", found.at, phase, step, code=found.code, **facts)


_ERROR_FACTS = ("cause", "peer", "headline", "message", "platform", "traceback", "details")


def relay(report: Report | None) -> None:
    """Print what the process printed."""
    for number, line in report.lines if report else ():
        pass_on(line, error=number == 2)
