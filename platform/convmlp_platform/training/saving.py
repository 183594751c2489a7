"""A run's state in and out of checkpoints, and the saves of one attempt at training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer, SaveEvent
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.layout import Part, step_of
from convmlp_platform.checkpoints.tensor_file import Slice
from convmlp_platform.data.ledger import LedgerWriter, known_attempts
from convmlp_platform.distributed import on_main, sum_over_ranks, wait_for_all
from convmlp_platform.engine.base import Engine
from convmlp_platform.engine.types import EngineState, OwnState
from convmlp_platform.errors import CheckpointError, SupersededError
from convmlp_platform.health.phases import Phase, PhaseClock
from convmlp_platform.training.state import TrainState

logger = logging.getLogger(__name__)

StateFacts = dict[str, Any]

# Seconds that a rollback waits for a save under way, which may be the one to go back to.
_LONGEST_WRITE = 120.0


@dataclass
class Saver:
    """Saves and loads. `own_facts(state)`: what a checkpoint says beside what this class knows; `on_save` is told what
    became of a save, on rank 0."""

    checkpointer: Checkpointer
    engine: Engine
    clock: PhaseClock
    own_facts: Callable[[TrainState], StateFacts]
    on_save: Callable[[SaveEvent], None]
    checkpoint: str | None = None
    """The newest checkpoint's path or URL, once the run was resumed or (on rank 0, at last on all) has saved."""
    owed: bool = field(init=False, default=False)
    """Whether a save was put off because the one before was still being written."""
    _writer: AsyncCheckpointer | None = field(init=False, default=None)
    """None on ranks that write nothing."""
    _record: LedgerWriter | None = field(init=False, default=None)
    _begun: int | None = field(init=False, default=None)
    """The step of the newest save that was begun."""

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

    def save(self, state: TrainState, wait: bool = False) -> None:
        """Begin a checkpoint (collective), once every rank's record of what led to it is durable.

        While the one before is still being written it is put off to the first step after that, unless it must `wait`.
        """
        if self._begun == state.step:
            return
        with self.clock.during(Phase.CHECKPOINT):
            if not wait and self._some_rank_writes():
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
                self._writer.save(self._snapshot(state, own), wait=True, changing=own.changing)

    def wait_tried(self) -> None:
        """Return once the save under way is committed, or was refused for now, and its tensors may change
        (collective)."""
        with self.clock.during(Phase.CHECKPOINT):
            if self._writer:
                self._writer.settle()
                self._writer.wait_tried()
            wait_for_all(self.engine.world)

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
            group: {name: Slice(shape, start) for name, (shape, start) in runs.items()}
            for group, runs in own.runs.items()
        }
        return Checkpoint(state.step, own.groups, facts, slices)

    def close(self) -> None:
        """Wait for the last checkpoint to be committed; its refusal ends every rank alike (collective)."""
        writer = self._writer
        newest = on_main(self.engine.world, lambda: writer.close() if writer else None)
        self.checkpoint = newest or self.checkpoint
        self.poll()

    def abandon(self) -> None:
        """End this attempt's saves: one that the storage refuses is given up, one under way is waited for."""
        if self._writer:
            try:
                self._writer.close(timeout=_LONGEST_WRITE if self._writer.busy else 0.0)
            except SupersededError:
                raise
            except CheckpointError as error:
                logger.warning("%s; it is given up, since training goes back", error)
        self.poll()

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints after `step`, from which training goes on (collective)."""
        on_main(self.engine.world, lambda: self.checkpointer.discard_after(step))

    def _some_rank_writes(self) -> bool:
        busy = float(self._writer is not None and self._writer.busy)
        return bool(sum_over_ranks(torch.tensor(busy, device=self.engine.world.device)).item())

    def poll(self) -> None:
        """Tell what became of saves."""
        for event in self._writer.poll() if self._writer and self.engine.world.is_main else []:
            if event.kind == "committed":
                self.checkpoint = event.location
            self.on_save(event)


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
