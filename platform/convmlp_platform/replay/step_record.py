"""The record that a run left of one step: job, line of attempts, batch, numbers, the way it was computed, and the
weights from which it is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from convmlp_platform.checkpoints.checkpointer import Checkpointer, load
from convmlp_platform.checkpoints.layout import FOLDER
from convmlp_platform.checkpoints.tensor_file import read_tensors
from convmlp_platform.config.identity import differences, identity_fields
from convmlp_platform.config.load import parse_job
from convmlp_platform.config.overrides import apply_overrides
from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineState
from convmlp_platform.errors import CheckpointError, ConfigError, DataError
from convmlp_platform.ledger.ledger_reader import RecordedAttempt, read_attempts, surviving_line
from convmlp_platform.ledger.proof_report import LedgerFindings, Span
from convmlp_platform.replay.recorded_batches import Recorded, consumed_in
from convmlp_platform.runs.run_folder import RunFolder, stored_identity_fields, stored_job
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import metric_history
from convmlp_platform.training.build.initial_weights import replayed_weights
from convmlp_platform.training.guard.incidents import Incident, read_incidents
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.storage.json_files import Count

_NUMBERS = ("non_finite", "spike")


@dataclass(frozen=True)
class Logged:
    """Means over the steps `first`..`last`, as the run logged them after the last of them."""

    first: int
    last: int
    loss: float
    grad_norm: float | None


@dataclass(frozen=True)
class StepRecord:
    """A step of a run, counted from 0, and what is known of it.

    Args:
        line: the attempts that led to the step, oldest first, each with the steps of it that count.
        incident: the one that is looked into, if the step has one.
        logged: the run's metrics from the time of the step, if they were logged.
    """

    run: Path
    step: int
    job: TrainJob
    manifest: DatasetManifest
    attempts: dict[int, RecordedAttempt]
    line: Sequence[Span]
    incidents: Sequence[Incident]
    incident: Incident | None
    logged: Logged | None
    _skipped: set[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        skipped = {
            (int(found.facts.get("attempt", 0)), found.step)
            for found in self.incidents
            if found.kind in _NUMBERS and found.facts.get("action") == "skip"
        }
        object.__setattr__(self, "_skipped", skipped)

    @property
    def attempt(self) -> int:
        """The attempt that did the step, or was to."""
        return self.line[-1].attempt

    def span_of(self, step: int) -> Span:
        """The attempt that did a step up to this one."""
        return next(span for span in reversed(self.line) if span.start <= step)

    def skipped(self, step: int) -> bool:
        """Whether the run computed this step, but left out its update."""
        return (self.span_of(step).attempt, step) in self._skipped

    def consumed(self, step: int) -> list[Recorded] | None:
        """Returns the ledger's record of a step; None if the step was not recorded."""
        return consumed_in(self.attempts[self.span_of(step).attempt], step)

    def due(self, step: int) -> list[Recorded]:
        """Returns the samples that were due in a step that the ledger does not have.

        For the step of the incident they are the incident's. Otherwise the ids are None: the sample order determines
        them.
        """
        size, known = self.job.training.micro_batch_size, self.incident if step == self.step else None
        found: list[Recorded] = []
        for number in range(self.job.training.num_micro_batches):
            found.append(Recorded(number, None, None, None, np.zeros(size, np.bool_)))
        for record in known.micro_batches if known else ():
            replaced = np.zeros(size, np.bool_)
            replaced[record["replaced"]] = True
            number = record["number"]
            ids = (np.asarray(record["samples"], np.int64), np.asarray(record["epochs"], np.int64))
            found[number] = Recorded(number, *ids, None, replaced)
        return found


def read_step(
    run: Path,
    step: int,
    *,
    overrides: Sequence[str] = (),
    incident: int | None = None,
    attempt: int | None = None,
) -> StepRecord:
    """Reads the record of a step; nothing is written.

    Args:
        run: the run's folder.
        overrides: `a.b=c`, laid over the job as it was last started: paths, if they differ here.
        incident: number of the incident to look into; default: the step's newest, if it has one.
        attempt: the attempt that did the step; default: the incident's, else the one on the surviving line.

    Raises:
        ConfigError: no job is on record, or the overrides change what the run computes.
        DataError: the dataset isn't the run's; the run didn't get to the step, or went back past it.
    """
    job = _job(run, overrides)
    attempts = read_attempts(run / "ledger")
    header = attempts[max(attempts)].header
    manifest = open_manifest(resolve(job.data.path, "data.path"), header.digest)
    fields = identity_fields(job, manifest.digest, replayed_weights(job, run))
    changed = differences(stored_identity_fields(run), fields, stored_job(run))
    if changed:
        raise ConfigError(
            "a replay computes what the run did, but these settings decide the result and are not the run's:\n"
            + "\n".join(f"  {line}" for line in changed)
        )
    incidents = read_incidents(RunFolder(run, "").incidents)
    chosen = _incident(run, incidents, step, incident, attempt)
    if attempt is None and chosen is not None:
        attempt = int(chosen.facts.get("attempt", 0)) or None
    line = _line(attempts, step, attempt)
    return StepRecord(
        run, step, job, manifest, attempts, line, incidents, chosen, _logged(run, step, line[-1].start)
    )


def _job(run: Path, overrides: Sequence[str]) -> TrainJob:
    values, names, problems = apply_overrides(stored_job(run), overrides)
    job = parse_job(values, str(run / "job.json"), names, problems)
    if not isinstance(job, TrainJob):
        raise ConfigError(f"{run / 'job.json'} is a {job.kind} job: only training has steps to replay")
    return job


def _incident(
    run: Path, incidents: Sequence[Incident], step: int, number: int | None, attempt: int | None
) -> Incident | None:
    of_step = [found for found in incidents if found.kind in _NUMBERS and found.step == step]
    if attempt is not None:
        of_step = [found for found in of_step if found.facts.get("attempt") == attempt]
    if number is None:
        return of_step[-1] if of_step else None
    chosen = [found for found in of_step if found.number == number]
    if not chosen:
        there = ", ".join(str(found.number) for found in of_step) or "none"
        known = ", ".join(f"{found.number} ({found.kind}, step {found.step})" for found in incidents)
        raise DataError(
            f"--incident {number} is no bad step {step} of {run.name} (of this step: {there}); "
            f"its incidents: {known or 'none'}"
        )
    return chosen[0]


def _line(attempts: dict[int, RecordedAttempt], step: int, attempt: int | None) -> list[Span]:
    """The attempts that led to the step, the last of which did it or was to do it next."""
    newest = max(attempts) if attempt is None else attempt
    if newest not in attempts:
        known = ", ".join(map(str, attempts))
        raise DataError(f"attempt {newest} left no record; those of the run that did: {known}")
    findings = LedgerFindings()
    whole = surviving_line({number: attempts[number] for number in attempts if number <= newest}, findings)
    if findings.counts:
        problems = "; ".join(line for lines in findings.shown.values() for line in lines)
        raise DataError(f"the run's ledger doesn't tell how it got to step {step}: {problems}")
    # The last one may have died in the step that was due after those it recorded.
    line = [span for span in whole if span.start <= step]
    if step > whole[-1].stop:
        elsewhere = [
            number for number, found in attempts.items() if found.header.start_step <= step < found.stop
        ]
        if elsewhere:
            raise DataError(
                f"step {step} was rolled back: attempt {elsewhere[-1]} did it, but the run went on from an earlier "
                f"step and is at step {whole[-1].stop} now; --attempt {elsewhere[-1]} replays it as it was then"
            )
        raise DataError(
            f"the run didn't get to step {step}: steps 0 to {whole[-1].stop - 1} are on record (counted from 0)"
        )
    return line


def _logged(run: Path, step: int, attempt_start: int) -> Logged | None:
    """The metrics whose mean the step is part of. The run logs after a step, so those of 0..9 under step 10."""
    history = [(at, values) for at, values in metric_history(journal_path(run)) if "train/loss" in values]
    behind = next(((at, values) for at, values in history if at > step), None)
    if behind is None:
        return None
    first = max([attempt_start, *(at for at, _ in history if at <= step)])
    at, values = behind
    return Logged(first, at - 1, values["train/loss"], values.get("train/grad_norm"))


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
