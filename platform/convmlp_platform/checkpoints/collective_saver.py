"""The rules of saving, for all ranks of an attempt alike: when a save that is due is begun, put off, waited for, tried
again and given up. Every method that is collective must be called by every rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer, SaveEvent
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer
from convmlp_platform.checkpoints.layout import Part, step_name
from convmlp_platform.distributed import World, gathered, on_main, sum_over_ranks
from convmlp_platform.errors import CheckpointError, recorded

logger = logging.getLogger(__name__)

_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.5  # seconds between looks at how far the ranks' writers are
_LOST = 60.0
"""Seconds that the first writer waits for parts while no rank writes any more: what was handed in is lost."""


@dataclass(frozen=True)
class _Saves:
    """How many ranks' writers are in which state (async_checkpointer.SaveState), and what they have written in all."""

    writing: float
    waiting: float
    refused: float
    failed: float
    lost: float
    late: float
    progress: float

    @property
    def busy(self) -> bool:
        """Whether a newer save must wait: bytes are being written, or parts are on their way to the first writer."""
        return self.writing > 0 or (self.waiting > 0 and not self.refused and not self.lost)

    @property
    def done(self) -> bool:
        return not self.writing + self.waiting + self.refused


class CollectiveSaver:
    """The saves of one attempt.

    - One save at a time. One that is due while the one before is still being written is put off (`owed`), unless
      training must wait for it; the writers' threads try again what the storage refuses (AsyncCheckpointer).
    - At the end (`finish`) the newest save is waited for as long as bytes move, and for `patience_s` while the storage
      refuses it.
    - From a save on request (to stop) on, all saving must be done within `patience_s`.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        world: World,
        *,
        part: Part | None,
        session: str,
        may_commit: Callable[[], None],
        patience_s: float,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """`part`: of each checkpoint, that this rank writes; None: it writes nothing. `session`, `may_commit`: see
        AsyncCheckpointer. `on_progress` hears each time that a save which is waited for has got further."""
        self.world, self.patience_s = world, patience_s
        self.owed = False
        """Whether a save was put off because the one before was still being written."""
        self._on_progress = on_progress
        self._begun: int | None = None
        """The step of the newest save that was begun."""
        self._deadline: float | None = None
        self._writer = None
        if part is not None:
            self._writer = AsyncCheckpointer(checkpointer, part=part, session=session, may_commit=may_commit)

    @property
    def writes(self) -> bool:
        """Whether this rank writes a part."""
        return self._writer is not None

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Have the memory for such a snapshot ready, so that the first save is as quick as the others."""
        if self._writer:
            self._writer.reserve(checkpoint)

    def settle(self) -> None:
        """Return when the last save's tensors may change: to be called before each optimizer update."""
        if self._writer:
            self._writer.settle()

    def may_begin(self, step: int, *, wait: bool = False, on_request: bool = False) -> bool:
        """Whether the save of `step` is to be begun now, by `write` on every rank that `writes` (collective).

        False where it was begun before, and where it is put off since the one before is still being written; that one
        is waited for instead with `wait`.

        Raises:
            CheckpointError: a writer has ended, or the time is over.
        """
        if on_request:
            self._deadline = time.monotonic() + self.patience_s
        if self._begun == step:
            return False
        if wait:
            self._watch(lambda saves: not saves.busy)
        elif self._look().busy:
            if self._writer and self.world.is_main and not self.owed:
                self._writer.skip(step)
            self.owed = True
            return False
        self.owed, self._begun = False, step
        return True

    def write(self, checkpoint: Checkpoint, changing: Container[str]) -> None:
        """Take the snapshot, and have it written (see AsyncCheckpointer.save)."""
        assert self._writer is not None
        self._writer.save(checkpoint, changing=changing)

    def wait_tried(self) -> None:
        """Return once the save under way is committed, or was refused for now, and its tensors may change
        (collective)."""
        self.settle()
        self._watch(lambda saves: saves.done, gives_up=lambda saves: not saves.busy)

    def poll(self) -> list[SaveEvent]:
        """What became of saves since the last call.

        Raises:
            Exception: this rank's writer hit an error that isn't the storage's.
        """
        return self._writer.poll() if self._writer else []

    def finish(self) -> str | None:
        """Wait for the newest save to be committed; the newest committed location (collective).

        Raises:
            CheckpointError: it isn't; on every rank alike, with the storage's refusal and its cause.
        """
        writer = self._writer
        if writer:
            writer.hurry()
        self._watch(lambda saves: saves.done)
        return on_main(self.world, lambda: writer.committed if writer else None)

    def abandon(self) -> None:
        """Wait for a save under way, which may be the one to go back to; give up one that the storage refuses
        (collective)."""
        if not self._watch(lambda saves: saves.done, gives_up=lambda saves: not saves.busy):
            logger.warning("the newest checkpoint is given up, since training goes back")

    def stop(self) -> None:
        """End this rank's writer."""
        if self._writer:
            self._writer.stop()

    def _watch(
        self, done: Callable[[_Saves], bool], gives_up: Callable[[_Saves], bool] | None = None
    ) -> bool:
        """Return True once it is `done`, False where the save is to be given up (collective).

        Raises:
            CheckpointError: on every rank alike: a writer has ended, or patience has.
        """
        furthest, moved_at, pause = -1.0, time.monotonic(), _FIRST_LOOK
        late = False
        while True:
            saves = self._look(late)
            if saves.failed:
                self._raise_failure()
            if done(saves):
                return True
            if gives_up is not None and gives_up(saves):
                return False
            if saves.late and (saves.refused or self._deadline is not None):
                self._raise_failure()
            now = time.monotonic()
            if saves.progress > furthest:
                furthest, moved_at = saves.progress, now
                self._on_progress()
            late = saves.refused > 0 and now - moved_at > self.patience_s
            late |= self._deadline is not None and now > self._deadline
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_LOOK)

    def _look(self, late: bool = False) -> _Saves:
        """How far all ranks are (collective); `late`: whether this rank has waited too long."""
        writer = self._writer
        state = writer.state if writer else "done"
        own = [state == known for known in ("writing", "waiting", "refused", "failed")]
        lost = writer is not None and writer.waited_s > _LOST
        progress = writer.progress if writer else 0
        values = torch.tensor([*own, lost, late, progress], dtype=torch.float64)
        return _Saves(*sum_over_ranks(values.to(self.world.device)).tolist())

    def _raise_failure(self) -> NoReturn:
        """Raise the error of the first rank that has one, on every rank (collective)."""
        failure = self._writer.failure if self._writer else None
        own = None if failure is None else recorded(failure)
        found = [each for each in gathered(own) if each is not None]
        name = step_name(self._begun or 0)
        if not found:
            raise CheckpointError(
                f"checkpoint {name} isn't committed {self.patience_s:g} s (launch.preemption_grace_s) after the "
                "request to stop: the storage is slow",
                cause="storage",
            )
        worst = next((each for each in found if each.kind != CheckpointError.__name__), found[0])
        if worst.kind == CheckpointError.__name__:
            worst = replace(worst, message=f"checkpoint {name} isn't committed: {worst.message}")
        raise worst.error()
