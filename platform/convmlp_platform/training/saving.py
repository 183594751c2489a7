"""A run's state in and out of checkpoints. checkpoints.collective_saver decides when a save is begun, put off or given
up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.collective_saver import CollectiveSaver
from convmlp_platform.checkpoints.layout import Part, step_of
from convmlp_platform.checkpoints.tensor_file import TensorSlice
from convmlp_platform.distributed import on_main, wait_for_all
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineState, OwnState
from convmlp_platform.errors import SupersededError
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.ledger.ledger import LedgerWriter, known_attempts
from convmlp_platform.training.step_plan import TrainState

StateFacts = dict[str, Any]


@dataclass
class Saver:
    """Saves and loads. `own_facts(state)`: what a checkpoint says beside what this class knows; `on_save` is told what
    became of a save or a checkpoint, on rank 0. `patience_s`: see CollectiveSaver (`launch.preemption_grace_s`)."""

    checkpointer: Checkpointer
    engine: Engine
    clock: PhaseClock
    own_facts: Callable[[TrainState], StateFacts]
    on_save: Callable[[SaveEvent], None]
    patience_s: float = 120.0
    checkpoint: str | None = None
    """The newest checkpoint's path or URL, once the run was resumed or (on rank 0, at last on all) has saved."""
    saves: CollectiveSaver = field(init=False)
    """Of the attempt that `open` began."""
    _record: LedgerWriter = field(init=False)

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
        if self.engine.world.is_main:
            self.on_save(
                SaveEvent("loaded", checkpoint.step, location, digest=checkpoint.digest, facts=facts)
            )
        seen, attempt = facts["samples_seen"], facts.get("attempt", 0)
        # Releases before there was this fact evaluated a step before they saved it.
        evaluated = facts.get("evaluated", checkpoint.step)
        return TrainState(checkpoint.step, seen, attempt, facts["metrics"], facts["best"], evaluated), facts

    def open(self, record: LedgerWriter) -> None:
        """Begin to save an attempt, whose ledger is `record`."""
        world, shared = self.engine.world, self.engine.every_rank_writes
        part = Part(world.rank, world.size) if shared else Part() if world.is_main else None
        self._record = record
        self.saves = CollectiveSaver(
            self.checkpointer,
            world,
            part=part,
            session=f"attempt-{record.header.attempt}",
            may_commit=lambda: check_newest(record),
            patience_s=self.patience_s,
            on_progress=self.clock.progress,
        )
        if self.saves.writes:
            self.engine.before_update = self._settle

    @property
    def owed(self) -> bool:
        """Whether a save was put off because the one before was still being written."""
        return self.saves.owed

    def _settle(self) -> None:
        with self.clock.during(Phase.CHECKPOINT):
            self.saves.settle()

    def reserve(self, state: TrainState) -> None:
        """Take the memory of a save, after the first update: the first save is then as quick as the others."""
        if self.saves.writes:
            with self.clock.during(Phase.CHECKPOINT):
                self.saves.reserve(self._snapshot(state, self.engine.own_state()))

    def save(self, state: TrainState, wait: bool = False, on_request: bool = False) -> None:
        """Begin a checkpoint (collective), once every rank's record of what led to it is durable; or put it off (see
        CollectiveSaver.may_begin).

        Raises:
            CheckpointError: a writer has ended, or the time is over.
        """
        with self.clock.during(Phase.CHECKPOINT):
            if not self.saves.may_begin(state.step, wait=wait, on_request=on_request):
                return
            self._record.sync()
            wait_for_all(self.engine.world)
            if self.saves.writes:
                own = self.engine.own_state()
                self.saves.write(self._snapshot(state, own), own.changing)

    def wait_tried(self) -> None:
        """Return once the save under way is committed, or was refused for now, and its tensors may change
        (collective)."""
        with self.clock.during(Phase.CHECKPOINT):
            self.saves.wait_tried()

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
        """Wait for the last checkpoint to be committed (collective).

        Raises:
            CheckpointError: it isn't; on every rank alike, with the storage's refusal and its cause.
        """
        self.checkpoint = self.saves.finish() or self.checkpoint
        self.poll()
        self.saves.stop()

    def abandon(self) -> None:
        """End this attempt's saves, since training goes back (collective)."""
        self.saves.abandon()
        self.poll()
        self.saves.stop()

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints after `step`, from which training goes on (collective)."""

        def discarded(step: int) -> None:
            self.on_save(SaveEvent("discarded", step, self.checkpointer.store.location(step)))

        on_main(
            self.engine.world,
            lambda: self.checkpointer.discard_after(step, lambda: check_newest(self._record), discarded),
        )

    def poll(self) -> None:
        """Tell what became of saves.

        Raises:
            Exception: this rank's writer hit an error that isn't the storage's.
        """
        for event in self.saves.poll():
            if not self.engine.world.is_main:
                continue
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
