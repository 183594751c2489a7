"""The phases of a rank, moment by moment: the one source of the heartbeat and of goodput.

The training loop says `enter(Phase.DATA)`, `enter(Phase.COMPUTE, step=7)` and so on. Each call ends the phase before
and costs about a microsecond.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Protocol


class Phase(IntEnum):
    """In the order in which a step goes through them, so that of two ranks in one step the lower is behind."""

    START = 0
    """Imports, building, and loading the checkpoint; from the process's begin to its first step."""
    COMPILE = 1
    """A process's first step: kernels are chosen, compiled, memory is taken."""
    DATA = 2
    """Waiting for the step's micro-batches."""
    COMPUTE = 3
    """Forward and backward; the last micro-batch's backward waits for the other ranks' gradients."""
    UPDATE = 4
    """Judging the step with the other ranks, and the optimizer."""
    EVALUATE = 5
    CHECKPOINT = 6
    """Work of a save that stalls training: the snapshot, or waiting for the save before."""
    FINISH = 7
    """Waiting for the last checkpoint to be durable, registering the model."""


class Beats(Protocol):
    """The receiver of each change (health.heartbeat.heartbeat has the one that watchers read)."""

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None: ...
    def step_done(self, step: int, seconds: float) -> None: ...
    def bear(self, seconds: float) -> None: ...


class PhaseClock:
    """Seconds a rank spent in each phase (by time.monotonic), and news of it for `beats`.

    `seconds` counts up to the last change; `read()` up to now.
    """

    def __init__(self, beats: Beats | None = None) -> None:
        self.beats = beats
        self.phase, self.step, self.micro_batch, self.note = Phase.START, 0, 0, ""
        self.seconds = dict.fromkeys(Phase, 0.0)
        self._since = time.monotonic()

    def enter(self, phase: Phase, *, step: int | None = None, micro_batch: int = 0, note: str = "") -> None:
        """Begin `phase`; `step` stays what it was where none is given, `note` says what is worked on (a shard)."""
        now = time.monotonic()
        self.seconds[self.phase] += now - self._since
        self._since, self.phase, self.micro_batch, self.note = now, phase, micro_batch, note
        if step is not None:
            self.step = step
        if self.beats is not None:
            self.beats.beat(phase, self.step, micro_batch, note)

    def progress(self, micro_batch: int | None = None) -> None:
        """The phase goes on and is not stuck: a micro-batch, a batch of an evaluation, a retry of a storage."""
        self.micro_batch = self.micro_batch + 1 if micro_batch is None else micro_batch
        if self.beats is not None:
            self.beats.beat(self.phase, self.step, self.micro_batch, self.note)

    def step_done(self, step: int, seconds: float) -> None:
        """`step` steps are done, the last in `seconds`: what a watcher's idea of a median step comes from."""
        self.step = step
        if self.beats is not None:
            self.beats.step_done(step, seconds)

    def bear(self, seconds: float) -> None:
        """Reading data may take `seconds` longer than its steps suggest: a remote storage that is asked again."""
        if self.beats is not None:
            self.beats.bear(seconds)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Within: `phase`; after it what was before."""
        before, note = self.phase, self.note
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before, note=note)

    def read(self) -> dict[Phase, float]:
        """Seconds of each phase until now; they add up to the time since this clock was made."""
        now = time.monotonic()
        return {
            phase: seconds + (now - self._since if phase is self.phase else 0.0)
            for phase, seconds in self.seconds.items()
        }
