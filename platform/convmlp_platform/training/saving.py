"""A run's state in and out of checkpoints, and the saves of one attempt at training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer, SaveEvent
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.layout import Part, step_name, step_of
from convmlp_platform.checkpoints.tensor_file import TensorSlice
from convmlp_platform.distributed import gathered, on_main, sum_over_ranks, wait_for_all
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineState, OwnState
from convmlp_platform.errors import CheckpointError, SupersededError, recorded
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.ledger.ledger import LedgerWriter, known_attempts
from convmlp_platform.training.train_state import TrainState

logger = logging.getLogger(__name__)

StateFacts = dict[str, Any]

_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.5  # seconds between looks at how far the ranks' writers are
_LOST = 60.0
"""Seconds that the first writer waits for parts while no rank writes any more: what was handed in is lost."""


@dataclass
class Saver:
    """Saves and loads. `own_facts(state)`: what a checkpoint says beside what this class knows; `on_save` is told what
    became of a save, on rank 0. `patience_s`: how long, at the end, a storage is asked again that refuses the last
    save; and how long saving may take at all once a rank was told to stop (`launch.preemption_grace_s`)."""

    checkpointer: Checkpointer
    engine: Engine
    clock: PhaseClock
    own_facts: Callable[[TrainState], StateFacts]
    on_save: Callable[[SaveEvent], None]
    patience_s: float = 120.0
    checkpoint: str | None = None
    """The newest checkpoint's path or URL, once the run was resumed or (on rank 0, at last on all) has saved."""
    owed: bool = field(init=False, default=False)
    """Whether a save was put off because the one before was still being written."""
    _writer: AsyncCheckpointer | None = field(init=False, default=None)
    """None on ranks that write nothing."""
    _record: LedgerWriter | None = field(init=False, default=None)
    _begun: int | None = field(init=False, default=None)
    """The step of the newest save that was begun."""
    _deadline: float | None = field(init=False, default=None)

    def newest(self, up_to: int | None = None) -> str | None:
        """The newest whole checkpoint (of at most `up_to` steps), or None (collective)."""
        return on_main(self.engine.world, lambda: self.checkpointer.newest(up_to))

    def step_up_to(self, step: int) -> int | None:
        """The steps of the newest whole checkpoint that has at most `step` of them (collective)."""
        location = self.newest(step)
        return None if location is None else step_of(location.rstrip("/").rpartition("/")[2])

    def load(self, location: str) -> tuple[TrainState, StateFacts]:
        """Put a checkpoint's state into the engine; where the run stands there, and all its facts (collective)."""
        checkpoint = load(location)
        tensors, facts = checkpoint.tensors, checkpoint.facts
        self.engine.load_state(
            EngineState(
                tensors["model"],
                tensors.get("optimizer", {}),
                tensors.get("ema"),
                facts["updates"],
                facts["extra"],
            )
        )
        self.checkpoint = location
        seen, attempt = facts["samples_seen"], facts.get("attempt", 0)
        # Releases before there was this fact evaluated a step before they saved it.
        evaluated = facts.get("evaluated", checkpoint.step)
        return TrainState(checkpoint.step, seen, attempt, facts["metrics"], facts["best"], evaluated), facts

    def open(self, record: LedgerWriter) -> None:
        """Begin to save an attempt, whose ledger is `record`."""
        world, shared, attempt = self.engine.world, self.engine.every_rank_writes, record.header.attempt
        self._record, self._begun, self.owed = record, None, False
        if world.is_main or shared:
            self._writer = AsyncCheckpointer(
                self.checkpointer,
                part=Part(world.rank, world.size) if shared else Part(),
                session=f"attempt-{attempt}",
                may_commit=lambda: check_newest(record),
            )
            self.engine.before_update = self._settle

    def _settle(self) -> None:
        if self._writer:
            with self.clock.during(Phase.CHECKPOINT):
                self._writer.settle()

    def reserve(self, state: TrainState) -> None:
        """Take the memory of a save, after the first update: the first save is then as quick as the others."""
        if self._writer:
            with self.clock.during(Phase.CHECKPOINT):
                self._writer.reserve(self._snapshot(state, self.engine.own_state()))

    def save(self, state: TrainState, wait: bool = False, on_request: bool = False) -> None:
        """Begin a checkpoint (collective), once every rank's record of what led to it is durable.

        While the one before is still being written it is put off to the first step after that, unless it must `wait`.
        From one that is made `on_request` (to stop) on, all saving must be done within `patience_s`.

        Raises:
            CheckpointError: a writer has ended, or the time is over.
        """
        if on_request:
            self._deadline = time.monotonic() + self.patience_s
        if self._begun == state.step:
            return
        with self.clock.during(Phase.CHECKPOINT):
            if wait:
                self._watch(lambda saves: not saves.busy)
            elif self._look().busy:
                if self._writer and self.engine.world.is_main and not self.owed:
                    self._writer.skip(state.step)
                self.owed = True
                return
            self.owed, self._begun = False, state.step
            assert self._record is not None
            self._record.sync()
            wait_for_all(self.engine.world)
            if self._writer:
                own = self.engine.own_state()
                self._writer.save(self._snapshot(state, own), changing=own.changing)

    def wait_tried(self) -> None:
        """Return once the save under way is committed, or was refused for now, and its tensors may change
        (collective)."""
        with self.clock.during(Phase.CHECKPOINT):
            if self._writer:
                self._writer.settle()
            self._watch(lambda saves: saves.done, gives_up=lambda saves: not saves.busy)

    def _snapshot(self, state: TrainState, own: OwnState) -> Checkpoint:
        facts = {
            "samples_seen": state.samples_seen,
            "attempt": state.attempt,
            "metrics": state.metrics,
            "best": state.best,
            "evaluated": state.evaluated,
            "updates": self.engine.updates,
            "extra": self.engine.extra_state(),
            **self.own_facts(state),
        }
        slices = {
            group: {name: TensorSlice(shape, start) for name, (shape, start) in runs.items()}
            for group, runs in own.runs.items()
        }
        return Checkpoint(state.step, own.groups, facts, slices)

    def close(self) -> None:
        """Wait for the last checkpoint to be committed (collective): as long as it is being written, and for
        `patience_s` while the storage refuses it. After a request to stop, until `patience_s` after that.

        Raises:
            CheckpointError: it isn't; on every rank alike, with the storage's refusal and its cause.
        """
        writer = self._writer
        if writer:
            writer.hurry()
        self._watch(lambda saves: saves.done)
        newest = on_main(self.engine.world, lambda: writer.committed if writer else None)
        self.checkpoint = newest or self.checkpoint
        self.poll()
        self._stop()

    def abandon(self) -> None:
        """End this attempt's saves (collective): one under way, which may be the one to go back to, is waited for; one
        that the storage refuses is given up."""
        if not self._watch(lambda saves: saves.done, gives_up=lambda saves: not saves.busy):
            logger.warning("the newest checkpoint is given up, since training goes back")
        self.poll()
        self._stop()

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints after `step`, from which training goes on (collective)."""
        record = self._record
        assert record is not None
        on_main(
            self.engine.world, lambda: self.checkpointer.discard_after(step, lambda: check_newest(record))
        )

    def poll(self) -> None:
        """Tell what became of saves.

        Raises:
            Exception: this rank's writer hit an error that isn't the storage's.
        """
        for event in self._writer.poll() if self._writer else []:
            if not self.engine.world.is_main:
                continue
            if event.kind == "committed":
                self.checkpoint = event.location
            self.on_save(event)

    def _stop(self) -> None:
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
                self.clock.progress()
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
        return _Saves(*sum_over_ranks(values.to(self.engine.world.device)).tolist())

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


def check_newest(record: LedgerWriter) -> None:
    """An attempt that another has followed must change no checkpoint any more.

    Raises:
        SupersededError: another has been claimed.
    """
    own, newest = record.header.attempt, max(known_attempts(record.path.parent.parent), default=0)
    if newest > own:
        raise SupersededError(
            f"this is attempt {own} at the run, and attempt {newest} has begun since: this process was taken for dead. "
            "It stops, and has changed nothing"
        )
