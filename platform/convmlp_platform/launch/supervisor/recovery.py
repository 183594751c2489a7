"""How long it takes from a failure to the next useful step, in parts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Recovery:
    """The cause of the next attempt's recovery, and the durations of its parts; times by time.monotonic.

    Args:
        reason: its cause, `start` at first.
        detect: seconds from the failure to the news of it.
        since: the time when the news came.
        judged: the time when all processes were gone and the cause was known.
        placed: the time when all agents were there.
    """

    reason: str = "start"
    detect: float = 0.0
    since: float = field(default_factory=time.monotonic)
    judged: float = field(default_factory=time.monotonic)
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
