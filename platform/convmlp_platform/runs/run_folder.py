"""A run's folder: who it belongs to, and where its parts lie.

RUNS/NAME/run.json        the run's identity and the settings it comes from
          job.json        the whole job as it was last started, without secrets
          checkpoints/    see checkpoints.layout
          evaluations.jsonl  what each evaluation gave, see training.evaluation.evaluations
          init/           the weights it began with, see runs.init_record
          best/           the best model so far, ready to be loaded or registered
          ledger/         which samples each rank used, see ledger.ledger
          quarantine.jsonl  samples found damaged, see data.dataset.damage
          events.jsonl    starts, ends and their causes, see health.events
          incidents/      what went wrong, with all it takes to look into it, see training.guard.incidents
          goodput/        where every second of every rank went, see goodput.account
          lineage/        job file, code and environment of the last start, see tracking.provenance.lineage_files
          profile/        traces of steps, by `profile.steps`, see training.profiling
          rollbacks.json  how often the run went back, and from which step, see training.guard.guard
          plots/  tracking/  ray/  report.html
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.identity import (
    IDENTITY_NAME,
    INIT_FROM,
    differences,
    identity_fields,
    identity_of,
    read_identity,
    write_identity,
)
from convmlp_platform.config.paths import resolve
from convmlp_platform.errors import CheckpointError, ConfigError
from convmlp_platform.runs.init_record import read_record
from data_prep.storage.json_files import DamagedJson, read_json, write_json
from data_prep.storage.urls import is_url, shown

if TYPE_CHECKING:
    from convmlp_platform.config.schema import TrainJob
    from convmlp_platform.tracking.provenance.submitted_job import GivenJob

logger = logging.getLogger(__name__)

JOB_NAME = "job.json"
REPORT_NAME = "report.html"
_PATHS = (("data", "path"), ("checkpoint", "path"), ("checkpoint", "store"), ("model", "init_from"))


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, claimed by its identity."""

    path: Path
    identity: str

    @property
    def ledger(self) -> Path:
        return self.path / "ledger"

    @property
    def quarantine(self) -> Path:
        """JSON lines, one for each sample found damaged."""
        return self.path / "quarantine.jsonl"

    @property
    def events(self) -> Path:
        """JSON lines, one for each thing that happened to the run."""
        return self.path / "events.jsonl"

    @property
    def incidents(self) -> Path:
        return self.path / "incidents"

    @property
    def goodput(self) -> Path:
        return self.path / "goodput"

    @property
    def rollbacks(self) -> Path:
        """The file with the counts of rollbacks, for use after a restart.

        A checkpoint can't hold them, because it is older.
        """
        return self.path / "rollbacks.json"

    @property
    def evaluations(self) -> Path:
        """JSON lines of what was evaluated, which no checkpoint knows: see training.evaluation.evaluations."""
        return self.path / "evaluations.jsonl"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def registered(self) -> Path:
        """Written once the best model is in the registry."""
        return self.path / "registered.json"


@dataclass(frozen=True)
class _Registered:
    """The part of registered.json that is read again."""

    uri: str


def registered_as(run: Path) -> str | None:
    """The registry's URI of the best model of the run in this folder; None: it isn't registered.

    Raises:
        OSError, DamagedJson: what is on record of it can't be read.
    """
    try:
        return read_json(RunFolder(run, "").registered, _Registered).uri
    except FileNotFoundError:
        return None


def run_path(job: TrainJob) -> Path:
    """Returns the folder of the run of `job`.

    Raises:
        ConfigError: `checkpoint.path` is a URL.
    """
    if is_url(job.checkpoint.path):
        raise ConfigError(f"checkpoint.path (={job.checkpoint.path}) must be a folder that all workers mount")
    return Path(resolve(job.checkpoint.path, "checkpoint.path")) / job.name


def checkpoints_of(job: TrainJob) -> str | Path:
    """The folder or URL of the run's checkpoints."""
    if job.checkpoint.store is None:
        return run_path(job) / "checkpoints"
    return f"{resolve(job.checkpoint.store, 'checkpoint.store').rstrip('/')}/{job.name}/checkpoints"


def check_owner(job: TrainJob, dataset_digest: str, weights: str | None = None) -> None:
    """Refuse a job whose name another recipe has taken.

    Args:
        weights: the hash of those it starts from, as `identity_fields` takes it.

    Raises:
        ConfigError: naming every setting that differs.
    """
    taken = stored_identity(run_path(job))
    if taken is None:
        return
    changed = differences(taken, identity_fields(job, dataset_digest, weights), last_job(run_path(job)))
    if changed:
        if weights is not None and taken.get(INIT_FROM) != weights:
            changed = [
                _changed_source(job, weights),
                *(line for line in changed if not line.startswith(INIT_FROM)),
            ]
        raise ConfigError(
            f"name: run {job.name!r} in {run_path(job)} was started with another recipe:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\ngive this one a name of its own (--set name=...), or remove that folder to start anew"
        )


def _changed_source(job: TrainJob, weights: str) -> str:
    """Of weights, hashes differ: the names say more."""
    record = read_record(run_path(job))
    was = "fresh weights" if record is None else f"{record.pinned} ({record.weights[:19]}…)"
    return f"{INIT_FROM}: {was} → {shown(str(job.model.init_from))} ({weights[:19]}…)"


def claim(job: TrainJob, dataset_digest: str, weights: str | None = None) -> RunFolder:
    """Take the run's folder, new or to go on with: its identity is the one that it was begun with.

    Raises:
        ConfigError: another recipe has the name.
        CheckpointError: the folder can't be written.
    """
    from convmlp_platform.tracking.provenance.lineage_files import scrubbed_values

    check_owner(job, dataset_digest, weights)
    path = run_path(job)
    fields = stored_identity(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if fields is None:
            fields = identity_fields(job, dataset_digest, weights)
            write_identity(path, fields)
        write_json(path / JOB_NAME, scrubbed_values(job.model_dump(mode="json")))
    except OSError as error:
        raise CheckpointError(f"checkpoint.path: can't write to {path}: {error.strerror}") from error
    return RunFolder(path, identity_of(fields))


def record_submission(run: Path, given: GivenJob | None) -> None:
    """Put what the driver knows of this start into the run's folder, under the run's lease.

    Raises:
        CheckpointError: the folder can't be written.
    """
    from convmlp_platform.tracking.provenance.submitted_job import write_submission

    try:
        write_submission(run, given)
    except OSError as error:
        raise CheckpointError(f"checkpoint.path: can't write to {run}: {error.strerror}") from error


def stored_job(run: Path) -> dict[str, Any]:
    """The values of the job as the run in this folder was last started; its URLs have lost passwords and queries, and
    its paths lead to where it is now (`_follow_run`).

    Raises:
        ConfigError: there is none that can be read.
    """
    try:
        return _follow_run(read_json(run / JOB_NAME, dict[str, Any]), run)
    except FileNotFoundError:
        raise ConfigError(
            f"{run} holds no {JOB_NAME}: it is no run's folder (CHECKPOINT.PATH/NAME), or its run was last started by "
            "a release before there was one: start it once more"
        ) from None
    except (OSError, DamagedJson) as error:
        raise ConfigError(
            f"{run / JOB_NAME} can't be read: {error}; starting the run again writes it anew"
        ) from error


def last_job(run: Path) -> dict[str, Any]:
    """`stored_job`, empty where there is none that can be read."""
    try:
        return stored_job(run)
    except ConfigError:
        return {}


def stored_identity_fields(run: Path) -> dict[str, Any]:
    """Reads the settings that decide the result of the run in this folder, by dotted name.

    Raises:
        ConfigError: it is no run's folder.
        CheckpointError: `run.json` can't be read.
    """
    fields = stored_identity(run)
    if fields is None:
        raise ConfigError(f"{run} holds no run.json: it is no run's folder (CHECKPOINT.PATH/NAME)")
    return fields


def stored_identity(run: Path) -> dict[str, Any] | None:
    """The `identity_fields` that the run in this folder was begun with, None where none was.

    Raises:
        CheckpointError: `run.json` can't be read.
    """
    try:
        return read_identity(run)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DamagedJson) as error:
        raise CheckpointError(
            f"{run / IDENTITY_NAME} can't be read: {error}; remove the run's folder to start anew"
        ) from error


def _follow_run(values: dict[str, Any], run: Path) -> dict[str, Any]:
    """The values of the job of the run in `run`, as they were recorded but for paths in the folder that it came from.

    The parts in which the run's former folder and its folder now differ from the left on are that folder before and
    now. What isn't in the new one is left where it was, and a line says so.
    """
    homes = _homes(values, run.absolute())
    if homes is None:
        return values
    before, now = homes
    found = dict(values)
    for section, key in _PATHS:
        text = found[section].get(key) if isinstance(found.get(section), dict) else None
        if not isinstance(text, str) or not Path(text).is_relative_to(before):
            continue
        there = now / Path(text).relative_to(before)
        if there.exists():
            found[section] = {**found[section], key: str(there)}
        elif Path(text).exists():
            logger.warning(
                "run %s came from %s without %s.%s: it is read where it was (%s)",
                run,
                before,
                section,
                key,
                text,
            )
    return found


def _homes(values: dict[str, Any], run: Path) -> tuple[Path, Path] | None:
    """The folder that moved, by its name before and now; None where the run is where it was."""
    try:
        before = Path(values["checkpoint"]["path"]) / values["name"]
    except (KeyError, TypeError):
        return None
    same = 0
    for old, new in zip(reversed(before.parts), reversed(run.parts), strict=False):
        if old != new:
            break
        same += 1
    if not before.is_absolute() or before == run or not 0 < same < min(len(before.parts), len(run.parts)):
        return None
    if before.exists() and before.samefile(run):
        return None
    return before.parents[same - 1], run.parents[same - 1]
