"""The record of a run's checkpoints, in its journal: which are there, which are gone, and what each was evaluated to.

The journal itself is the memory. A process that goes on with the run reads which checkpoints are on record and which
evaluation lacks its link; the process before may have died between any two lines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointMetrics,
    CheckpointRecord,
    CheckpointRetired,
    MetricsRecord,
    Record,
    checkpoint_history,
)
from convmlp_platform.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

_FACTS = ("epoch", "samples_seen", "attempt")


@dataclass(frozen=True)
class Evaluated:
    """The dataset that a run's checkpoints are evaluated on."""

    dataset: str
    digest: str
    split: str = ""


@dataclass
class _Known:
    """A checkpoint that is there, as far as the journal says, and its evaluation."""

    record: CheckpointCommitted
    metrics: MetricsRecord | None = None
    is_linked: bool = False


class CheckpointLog:
    """Writes a run's checkpoints to its journal, each once, and links an evaluation to the checkpoint of its step.

    Commit and evaluation of a step may come in either order, and in different processes.
    """

    def __init__(self, tracker: Tracker, folder: Path, data: Evaluated, facts: Mapping[str, object]) -> None:
        """`folder`: the run's. `facts`: what is said of every checkpoint (strategy, world size)."""
        self._tracker, self._folder, self._data, self._facts = tracker, folder, data, facts
        self._known: dict[int, _Known] = {}
        self._waiting: dict[int, MetricsRecord] = {}
        """Evaluations of steps that no checkpoint is known of yet."""
        self._was_read = False

    def start(self, step: int) -> None:
        """Training goes on after `step`: what was after it is to be done again."""
        self._read()
        self._retire([later for later in self._known if later > step], "rollback")
        self._waiting = {done: found for done, found in self._waiting.items() if done <= step}

    def saw(self, event: SaveEvent) -> None:
        """Record what became of a checkpoint."""
        self._read()
        if event.kind in ("committed", "loaded"):
            self._is_there(event)
        elif event.kind == "retired":  # those before it go with it
            self._retire([step for step in self._known if step <= event.step], "newer")
        elif event.kind == "discarded":
            self._retire([step for step in self._known if step == event.step], "rollback")

    def evaluated(self, metrics: MetricsRecord) -> None:
        """Link metrics, which are on record as the run's, to the checkpoint of their step."""
        self._read()
        self._took(metrics)
        self._link(metrics.step)

    def _is_there(self, event: SaveEvent) -> None:
        known = self._known.get(event.step)
        if known is not None:
            if event.digest in ("", known.record.digest):
                return
            self._retire([event.step], "rollback")
        own = {name: event.facts[name] for name in _FACTS if name in event.facts}
        facts: dict[str, Any] = {**own, **self._facts, "digest": event.digest}
        record = CheckpointCommitted(
            location=event.location,
            digest=event.digest,
            step=event.step,
            facts={name: str(value) for name, value in facts.items()},
        )
        self._write(record)
        self._link(event.step)

    def _link(self, step: int) -> None:
        known = self._known.get(step)
        if known is None or known.metrics is None or known.is_linked:
            return
        record, metrics = known.record, known.metrics
        self._write(
            CheckpointMetrics(
                time=metrics.time,
                location=record.location,
                digest=record.digest,
                step=step,
                values=metrics.values,
                dataset=self._data.dataset,
                dataset_digest=self._data.digest,
                split=self._data.split,
            )
        )

    def _retire(self, steps: list[int], reason: Literal["newer", "rollback"]) -> None:
        for step in steps:
            record = self._known[step].record
            self._write(
                CheckpointRetired(location=record.location, digest=record.digest, step=step, reason=reason)
            )

    def _write(self, record: CheckpointRecord) -> None:
        self._tracker.log_checkpoint(record)
        self._took(record)

    def _took(self, record: Record) -> None:
        """Follow the journal by one line, written now or before."""
        if isinstance(record, CheckpointCommitted):
            self._known[record.step] = _Known(record, self._waiting.pop(record.step, None))
            # One save at a time: those of steps before this one were given up.
            self._waiting = {step: one for step, one in self._waiting.items() if step > record.step}
        elif isinstance(record, CheckpointRetired):
            self._known.pop(record.step, None)
        elif isinstance(record, MetricsRecord):
            known = self._known.get(record.step)
            if known is None:
                self._waiting[record.step] = record
            elif not known.is_linked:
                known.metrics = record
        elif isinstance(record, CheckpointMetrics) and (known := self._known.get(record.step)) is not None:
            known.is_linked = True

    def _read(self) -> None:
        """Take what the journal says, once; one that can't be read costs links, not the run."""
        if self._was_read:
            return
        self._was_read = True
        try:
            for record in checkpoint_history(journal_path(self._folder)):
                self._took(record)
        except OSError as error:
            logger.warning("tracking: what is on record of checkpoints can't be read: %s", error)
        for step in list(self._known):
            self._link(step)
