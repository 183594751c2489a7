"""The report of an agent to the supervisor about its training process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from convmlp_platform.health.heartbeat.heartbeat import Heartbeat
from convmlp_platform.launch.supervisor.causes import Ending


@dataclass(frozen=True)
class Exit:
    """How the training process ended: `code` as subprocess has it (-9: killed by signal 9), `at` unix seconds;
    `outcome` is what it wrote, see `process`."""

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
        print(line, file=sys.stdout if number == 1 else sys.stderr, flush=True)
