"""A run's part of the chain: job, code, environment, datasets, as its tags and inputs say.

Tags can be edited by anybody who may write to the server: what isn't what was written is unknown, never a traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from convmlp_platform.tracking.mlflow.client import A_PAGE, every
from data_prep.storage.json_files import DamagedJson, parse_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LIBRARIES = ("torch", "torchvision", "timm", "ray", "accelerate", "deepspeed", "mlflow")
CHANGED_TAG = "lineage.changed"
"""Of a version: facts of its run that differ between starts, as JSON."""
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_OTHER_RELEASE = "the release that recorded it didn't say"


@dataclass(frozen=True)
class CodeFacts:
    """`dirty` None: unknown. `origin`: where the commit is known from. `diff`: its size, and what it lacks. `trees`:
    package → the hash that git gives its folder. `version`: of the package, where there is no commit."""

    commit: str | None = None
    dirty: bool | None = None
    origin: str | None = None
    diff: str | None = None
    diff_sha256: str | None = None
    trees: dict[str, str] = field(default_factory=dict)
    version: str | None = None


@dataclass(frozen=True)
class DatasetFacts:
    """A split of a dataset that was read. `context`: training or evaluation; `rows`, `classes` None: unknown."""

    name: str
    digest: str
    context: str
    split: str | None = None
    rows: int | None = None
    classes: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class RunFacts:
    """A run as the server has it.

    Args:
        job_file, overrides: as the job was given; None: unknown.
        environment: versions by library, `python`, `cpu`, `instructions`, `threads`.
        changed: facts that weren't the same at every start, with all their values; None: not recorded.
        unknown: what isn't on record, a sentence each.
    """

    run_id: str
    name: str | None
    status: str
    started: str | None
    ended: str | None
    identity: str | None
    world_size: int | None
    device: str | None
    job_file: str | None
    overrides: list[str] | None
    code: CodeFacts
    environment: dict[str, str]
    datasets: list[DatasetFacts]
    unknown: list[str]


def run_facts(run: Run) -> RunFacts:
    """What a run's tags and inputs say."""
    tags, unknown = dict(run.data.tags), list[str]()
    code = code_facts(tags)
    if code.commit is None and not code.trees:
        unknown.append(f"code: {_OTHER_RELEASE}")
    datasets = [_dataset(one) for one in (run.inputs.dataset_inputs if run.inputs else ())]
    if not datasets:
        unknown.append("datasets: none is on record")
    elif any(one.split is None for one in datasets):
        unknown.append(f"splits: {_OTHER_RELEASE}")
    if "job.file" not in tags:
        unknown.append(
            "job file: none was given (a trial of a sweep, a program), or the release didn't record it"
        )
    return RunFacts(
        run_id=str(run.info.run_id),
        name=run.info.run_name,
        status=str(run.info.status),
        started=moment(run.info.start_time),
        ended=moment(run.info.end_time),
        identity=tags.get("identity"),
        world_size=whole_number(tags.get("world_size")),
        device=tags.get("device"),
        job_file=tags.get("job.file"),
        overrides=texts(tags.get("job.overrides")),
        code=code,
        environment=environment_facts(tags),
        datasets=sorted(datasets, key=lambda one: (one.context != "training", one.name, one.split or "")),
        unknown=unknown,
    )


def code_facts(tags: Mapping[str, str]) -> CodeFacts:
    """What the tags of a run or version say of its code."""
    commit, dirty = tags.get("git.commit", ""), tags.get("git.dirty")
    pairs = (one.partition(":") for one in tags.get("code.trees", "").split())
    return CodeFacts(
        commit=commit if _COMMIT.fullmatch(commit) else None,
        dirty={"true": True, "false": False}.get(dirty or ""),
        origin=tags.get("code.origin"),
        diff=tags.get("code.diff"),
        diff_sha256=tags.get("code.diff_sha256"),
        trees={package: tree for package, _, tree in pairs if _COMMIT.fullmatch(tree)},
        version=tags.get("code.version"),
    )


def environment_facts(tags: Mapping[str, str]) -> dict[str, str]:
    """What the tags say of versions and processor."""
    named = {"python": "python.version", "cpu": "cpu.model", "instructions": "cpu.capability"}
    named |= {"threads": "torch.threads", "host": "host.name"} | {
        name: f"{name}.version" for name in LIBRARIES
    }
    return {name: tags[tag] for name, tag in named.items() if tag in tags}


def _dataset(given: Any) -> DatasetFacts:
    tags = {tag.key: tag.value for tag in given.tags}
    try:
        source = parse_json(str(given.dataset.source).encode(), dict[str, str]).get("uri")
    except DamagedJson:
        source = None
    return DatasetFacts(
        name=tags.get("dataset", given.dataset.name),
        digest=tags.get("digest", given.dataset.digest),
        context=tags.get("mlflow.data.context", "unknown"),
        split=tags.get("split"),
        rows=whole_number(tags.get("num_rows")),
        classes=whole_number(tags.get("num_classes")),
        source=source,
    )


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run; None where it was deleted or never was.

    Raises:
        MlflowException: the server can't say now.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return found if found.info.lifecycle_stage == "active" else None


def search_everywhere(client: MlflowClient, wanted: str) -> list[Run]:
    """The runs of all experiments that a filter takes, oldest first."""
    known: Iterator[Any] = every(
        lambda token: client.search_experiments(max_results=A_PAGE, page_token=token)
    )
    experiments = [str(one.experiment_id) for one in known]
    return list(
        every(
            lambda token: client.search_runs(
                experiments,
                wanted,
                max_results=A_PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
        )
    )


def quoted(value: str) -> str | None:
    """A value within a filter; None: it has quotation marks of both kinds, which MLflow has no way to write."""
    if "'" in value and '"' in value:
        return None
    return f'"{value}"' if "'" in value else f"'{value}'"


def moment(milliseconds: int | None) -> str | None:
    """A time of MLflow's as ISO 8601, UTC."""
    return moment_of(milliseconds / 1000) if milliseconds else None


def moment_of(seconds: float) -> str:
    """Unix seconds as ISO 8601, UTC: `2026-11-30T12:05:00Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def whole_number(text: str | None) -> int | None:
    """A count out of a tag."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 16 else None


def texts(text: str | None) -> list[str] | None:
    """A list out of a tag."""
    if text is None:
        return None
    try:
        return parse_json(text.encode(), list[str])
    except DamagedJson:
        return None
