"""From which weights a step is replayed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convmlp_platform.checkpoints.checkpointer import Checkpointer, load
from convmlp_platform.checkpoints.inventory import FOLDER
from convmlp_platform.checkpoints.tensor_file import read_tensors
from convmlp_platform.config.paths import resolve
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineState
from convmlp_platform.errors import CheckpointError
from convmlp_platform.replay.step_record import StepRecord
from data_prep.errors import DataPrepError
from data_prep.storage.json_files import Count

MOST_FROM_START = 100
"""Without a checkpoint, so many steps are done again from the run's beginning without being asked to."""


@dataclass(frozen=True)
class ReplayStart:
    """Weights that are there: of the incident itself, a checkpoint's, or the run's first; after `step` steps."""

    kind: Literal["incident", "checkpoint", "beginning"]
    step: int
    location: str = ""

    def __str__(self) -> str:
        if self.kind == "incident":
            return f"as they were before the step, kept with the incident ({self.location})"
        if self.kind == "checkpoint":
            return f"of the checkpoint at step {self.step} ({self.location})"
        return "the run's first, made anew from its seed"


@dataclass(frozen=True)
class _Saved:
    """The part of a checkpoint's state.json that is read here."""

    attempt: Count = 0


def find_start(record: StepRecord, *, from_start: bool = False) -> ReplayStart:
    """The nearest weights at or before the step, read and found whole.

    Args:
        from_start: begin at step 0, whatever there is.

    Raises:
        CheckpointError: there are none, and the run's beginning is too far away.
    """
    if from_start:
        return ReplayStart("beginning", 0)
    if record.incident is not None and (kept := record.incident.weights) is not None:
        return ReplayStart("incident", record.step, str(kept))
    checkpointer = _checkpoints(record)
    try:
        steps = checkpointer.store.steps()
    except (OSError, DataPrepError) as error:
        raise CheckpointError(f"the run's checkpoints can't be listed: {error}") from None
    for step in reversed([found for found in steps if found <= record.step]):
        location = checkpointer.store.location(step)
        if checkpointer.is_whole(step, read_again=True) and _on_line(record, checkpointer, step):
            return ReplayStart("checkpoint", step, location)
    if record.step <= MOST_FROM_START:
        return ReplayStart("beginning", 0)
    kept_steps = ", ".join(map(str, steps)) or "none"
    raise CheckpointError(
        f"{record.run.name}: no checkpoint at or before step {record.step} is left (there are: {kept_steps}; "
        f"checkpoint.keep is {record.job.checkpoint.keep}): replay a later step, or do all {record.step} steps "
        "again with --from-start"
    )


def load_start(start: ReplayStart, engine: Engine) -> None:
    """Put the weights, and what the optimizer knows, into the engine; a fresh one is at the beginning already.

    Raises:
        CheckpointError: they can't be read, or are not this model's.
    """
    if start.kind == "beginning":
        return
    try:
        if start.kind == "incident":
            engine.load_full_model_state(read_tensors([Path(start.location)]))
            return
        checkpoint = load(start.location)
        tensors, facts = checkpoint.tensors, checkpoint.facts
        engine.load_state(
            EngineState(
                tensors["model"], tensors.get("optimizer", {}), None, facts["updates"], facts.get("extra", {})
            )
        )
    except (RuntimeError, KeyError) as error:  # torch's for other names or shapes
        raise CheckpointError(f"{start.location} doesn't fit the run's model: {error}") from None


def _checkpoints(record: StepRecord) -> Checkpointer:
    """Those in the run's folder, wherever that lies now, or at the URL of `checkpoint.store`."""
    if record.job.checkpoint.store is None:
        return Checkpointer(record.run / FOLDER)
    store = resolve(record.job.checkpoint.store, "checkpoint.store").rstrip("/")
    return Checkpointer(f"{store}/{record.job.name}/{FOLDER}")


def _on_line(record: StepRecord, checkpointer: Checkpointer, step: int) -> bool:
    """Whether one of the attempts that led to the step has saved it."""
    attempt = checkpointer.facts(step, _Saved).attempt
    return attempt == 0 or any(
        span.attempt == attempt and span.start <= step <= span.stop for span in record.line
    )
