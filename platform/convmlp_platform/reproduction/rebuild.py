"""The job of a registered version and the description of its surroundings, rebuilt from the registry alone.

REPRODUCTIONS/RUN/job.yaml       the job to run again, with all its values: `convmlp run` takes it
      given_job.yaml             the job file as it was given then; base_job.yaml: the one that it extended
      code.json, code.patch      the code: commit, hashes of all files; what differed from the commit
      environment.json           Python, packages, processor
      requirements.txt           the packages, for `pip install -r`
      lineage.json               the chain behind the version
      at_hand.json               what is at hand here, and what can't be equal
      verdict.json               whether the weights are equal, once it was trained again
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from convmlp_platform.config.load import dump_yaml, parse_job
from convmlp_platform.config.overrides import apply_overrides
from convmlp_platform.config.paths import REGISTRY_SCHEME, root
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.config.sections.section import Name
from convmlp_platform.errors import ConfigError
from convmlp_platform.registry.lineage.read_lineage import Lineage
from convmlp_platform.registry.lineage.run_facts import RunFacts
from convmlp_platform.registry.lineage.stored_files import fetch_run_files
from convmlp_platform.tracking.provenance.lineage_files import (
    ALL_FILES,
    CODE,
    CODE_DIFF,
    ENVIRONMENT,
    JOB,
    REQUIREMENTS,
)
from convmlp_platform.tracking.provenance.submitted_job import (
    BASE_JOB,
    FOLDER,
    GIVEN_JOB,
    SUBMISSION,
    as_json,
)
from data_prep.storage.files import write_atomically
from data_prep.storage.json_files import DamagedJson, read_json

REPRODUCTIONS = "reproductions"
"""Folder below CONVMLP_ROOT."""
REBUILT_JOB, CHAIN = "job.yaml", "lineage.json"
TAG = "reproduces"
"""Of a run: the version that it trains again."""
_KEPT = (GIVEN_JOB, BASE_JOB, CODE, CODE_DIFF, ENVIRONMENT, REQUIREMENTS, SUBMISSION)


@dataclass(frozen=True)
class Wishes:
    """What the user decides of a reproduction.

    Args:
        name: of the new run.
        dataset: where the dataset lies here; None: where it lay then.
        register: nominate the result as a candidate, under the name that the run registered.
        overrides: `a.b=c`, laid over the rebuilt job.
    """

    name: str
    dataset: str | None = None
    register: bool = False
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Rebuilt:
    """`job`: to be run again, its paths resolved; `run`: the run that trained the version; `folder`: where all lies;
    `left_out`: the callbacks on record, whose code a rebuilt job doesn't import."""

    job: TrainJob
    run: RunFacts
    folder: Path
    lineage: Lineage
    left_out: tuple[str, ...] = ()


def rebuild(lineage: Lineage, section: TrackingTarget, wishes: Wishes) -> Rebuilt:
    """Rebuild the job and put it, with the description of its surroundings, into a folder.

    Raises:
        ConfigError: the registry doesn't have the job, or no job can be made of it.
        TrackingError: the server or its artifact store doesn't answer.
    """
    run = lineage.run
    if run is None:
        raise ConfigError(
            f"{lineage.uri}: can't be trained again: {next(iter(lineage.unknown), 'its run is unknown')}"
        )
    folder = root() / REPRODUCTIONS / _checked(wishes.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="convmlp-lineage-") as scratch:
            found = fetch_run_files(run.run_id, FOLDER, ALL_FILES, section, Path(scratch))
            if JOB not in found:
                raise ConfigError(
                    f"{lineage.uri}: its job isn't on record (no {FOLDER}/{JOB} in run {run.run_id}): it was "
                    "registered by an older release, or the file was deleted"
                )
            for name in _KEPT:
                (folder / name).unlink(missing_ok=True)
                if name in found:
                    write_atomically(folder / name, found[name].read_bytes(), durable=False)
            values = _values(found[JOB], lineage.uri)
        job = _job(values, lineage, run, section, wishes)
        write_atomically(folder / REBUILT_JOB, dump_yaml(job).encode())
        write_atomically(folder / CHAIN, as_json(lineage.facts()))
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error.strerror or error}") from None
    recorded = values.get("callbacks") or ()
    return Rebuilt(job.resolved(), run, folder, lineage, tuple(str(one) for one in recorded))


def _checked(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise ConfigError(f"--out {name}: can't be a run's name: {error.errors()[0]['msg']}") from None


def _values(file: Path, uri: str) -> dict[str, Any]:
    try:
        return read_json(file, dict[str, Any])
    except DamagedJson as error:
        raise ConfigError(f"{uri}: the job on record isn't what was written: {error}") from None


def _job(
    values: dict[str, Any], lineage: Lineage, run: RunFacts, section: TrackingTarget, wishes: Wishes
) -> TrainJob:
    """The recorded job, for this place: under a new name, with the same data and start, as many workers and threads."""
    if values.get("kind") != "train":
        raise ConfigError(f"{lineage.uri}: the job on record is of kind {values.get('kind')!r}, not train")
    where = f"the job of {lineage.uri}"
    tracking = dict(values.get("tracking") or {})
    registered = tracking.get("register_as")
    changes: dict[str, Any] = {
        "name": wishes.name,
        "tracking": tracking
        | {
            "uri": section.uri,
            "tags": dict(tracking.get("tags") or {}) | {TAG: lineage.uri},
            "register_as": dict(registered) | {"automatic": False}
            if wishes.register and registered
            else None,
        },
        "data": dict(values.get("data") or {}),
        "model": dict(values.get("model") or {}),
        "launch": dict(values.get("launch") or {}) | {"address": "auto", "min_workers": None},
        "checkpoint": dict(values.get("checkpoint") or {}) | {"path": "runs", "store": None},
        # Which code runs here is this user's decision, not that of whoever filled the registry.
        "callbacks": [],
    }
    training = [one for one in run.datasets if one.context == "training"]
    if training:
        changes["data"]["digest"] = training[0].digest
    if wishes.dataset is not None:
        changes["data"]["path"] = wishes.dataset
    if lineage.parent is not None and lineage.parent.pinned.startswith(REGISTRY_SCHEME):
        changes["model"]["init_from"] = lineage.parent.pinned
    if run.world_size is not None:
        changes["launch"]["num_workers"] = run.world_size
    if run.device == "cpu":
        changes["launch"]["use_gpu"] = False
    threads = run.environment.get("threads", "")
    if threads.isdigit() and int(threads) > 0:
        changes["launch"]["cpus_per_worker"] = int(threads)
    changed, names, problems = apply_overrides(values | changes, wishes.overrides)
    job = parse_job(changed, where, names, problems)
    assert isinstance(job, TrainJob)  # as its kind says
    return job
