"""The choice of an action for a step with wrong numbers: compute again, skip, go back, stop, in this order.

The job's `guard` section sets the limits. All decisions depend only on numbers that all ranks share. So all ranks come
to the same verdict without communication.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any, Literal

from convmlp_platform.config.sections.resilience import GuardSection
from convmlp_platform.errors import CheckpointError
from data_prep.storage.files import write_atomically
from data_prep.storage.json_files import Count, DamagedJson, read_json


class Action(StrEnum):
    """In the order of the ladder."""

    ACCEPT = "accept"
    RECOMPUTE = "recompute"
    SKIP = "skip"
    ROLLBACK = "rollback"
    STOP = "stop"


@dataclass(frozen=True)
class GuardVerdict:
    """The action for a step, and its reason. `kind` is None if nothing is wrong with the step."""

    action: Action
    kind: Literal["non_finite", "spike"] | None = None
    message: str = ""


@dataclass
class Rollbacks:
    """The counts of rollbacks, which must outlive a rollback and a restart.

    They can't be in a checkpoint, because the checkpoint is older. `in_row` rollbacks went back from step `step` or
    an earlier one, and the run has not got past `step` since. `total` counts all rollbacks of the run.
    """

    total: Count = 0
    in_row: Count = 0
    step: int = -1

    def write(self, path: Path) -> None:
        """Make it durable.

        Raises:
            CheckpointError: the storage refuses.
        """
        try:
            write_atomically(path, json.dumps(asdict(self)).encode())
        except OSError as error:
            raise CheckpointError(f"can't write {path}, which counts rollbacks: {error.strerror}") from error

    @staticmethod
    def read(path: Path) -> Rollbacks:
        """Reads the counts that an earlier start wrote; all zero if there is no such file.

        Raises:
            CheckpointError: it can't be read.
        """
        try:
            return read_json(path, Rollbacks)
        except FileNotFoundError:
            return Rollbacks()
        except (OSError, DamagedJson) as error:
            raise CheckpointError(
                f"{path} can't be read: {error}; remove it to count rollbacks anew"
            ) from error


@dataclass
class Guard:
    """The ladder. `judge` says what to do with each step; it takes note of what it says.

    Losses of accepted steps, the bad steps in a row and the counts are in a checkpoint (`facts`, `load`), so a run
    that goes on judges as the undisturbed one would.
    """

    section: GuardSection
    rollbacks: Rollbacks = field(default_factory=Rollbacks)
    skips: int = 0
    """Bad steps in a row that were skipped."""
    first_bad: int = -1
    """The first of them, or of what a rollback must get behind."""
    skipped: int = 0
    recomputed: int = 0
    losses: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.losses = deque(maxlen=self.section.spike_window)

    def judge(self, step: int, loss: float, grad_norm: float, *, again: bool = False) -> GuardVerdict:
        """The verdict on a step; `again`: it was computed a second time."""
        kind, message = self._wrong(loss, grad_norm)
        if kind is None:
            self._accepted(step, loss)
            return GuardVerdict(Action.ACCEPT)
        if not again:
            self.recomputed += 1
            return GuardVerdict(Action.RECOMPUTE, kind, message)
        if self.skips == 0:
            self.first_bad = step
        policy = self.section.on_non_finite if kind == "non_finite" else self.section.on_spike
        if policy == "skip" and self.skips < self.section.max_skips:
            self.skips += 1
            self.skipped += 1
            return GuardVerdict(Action.SKIP, kind, message)
        if policy == "stop" or self.rollbacks.in_row >= self.section.max_rollbacks:
            return GuardVerdict(Action.STOP, kind, message)
        return GuardVerdict(Action.ROLLBACK, kind, message)

    def _wrong(self, loss: float, grad_norm: float) -> tuple[Literal["non_finite", "spike"] | None, str]:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return "non_finite", f"loss {loss:g}, gradient norm {grad_norm:g}"
        if self.section.on_spike != "ignore" and len(self.losses) >= self.section.spike_window:
            usual = median(self.losses)
            if loss > self.section.spike_factor * usual:
                return "spike", f"loss {loss:g}, the usual is {usual:g}"
        return None, ""

    def _accepted(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        self.skips, self.first_bad = 0, -1
        if step >= self.rollbacks.step:
            self.rollbacks.in_row, self.rollbacks.step = 0, -1

    def rolled_back(self, step: int) -> None:
        """Take note of a rollback from a bad `step`."""
        seen = self.rollbacks
        self.rollbacks = Rollbacks(seen.total + 1, seen.in_row + 1, max(step, seen.step))

    def facts(self) -> dict[str, Any]:
        """For the checkpoint, as JSON values."""
        return {
            "losses": list(self.losses),
            "skips": self.skips,
            "first_bad": self.first_bad,
            "skipped": self.skipped,
            "recomputed": self.recomputed,
        }

    def load(self, facts: Mapping[str, Any], step: int) -> None:
        """Go on from the `facts` of a checkpoint of `step` steps (of a release without a guard: none). Counts never go
        back."""
        if step > self.rollbacks.step:
            self.rollbacks.in_row, self.rollbacks.step = 0, -1
        self.losses = deque(facts.get("losses", ()), maxlen=self.section.spike_window)
        self.skips, self.first_bad = int(facts.get("skips", 0)), int(facts.get("first_bad", -1))
        self.skipped = max(self.skipped, int(facts.get("skipped", 0)))
        self.recomputed = max(self.recomputed, int(facts.get("recomputed", 0)))
