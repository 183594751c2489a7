"""The chain behind a registered version, read from the registry and the runs alone: no folder of a run is needed.

What isn't on record is said to be unknown. A version that an older release registered lacks facts, and so does one
whose run was deleted or whose tags were edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.paths import REGISTRY_SCHEME
from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.registry.lineage.run_facts import (
    CHANGED_TAG,
    RunFacts,
    find_run,
    moment,
    quoted,
    run_facts,
    search_everywhere,
)
from convmlp_platform.registry.lineage.version_facts import (
    STEP_TAG,
    CheckpointFacts,
    EvaluationFacts,
    checkpoint_facts,
    decision_facts,
    evaluation_facts,
)
from convmlp_platform.registry.registry import WEIGHTS_TAG, find_version, registry_at
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.delivery import logged_model_of
from convmlp_platform.tracking.mlflow.server import mlflow_errors
from data_prep.storage.json_files import DamagedJson, parse_json, plain_values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_MOST_PARENTS = 50
"""A longer line of parents is an edited one."""


@dataclass(frozen=True)
class ParentFacts:
    """The weights that a run began from.

    Args:
        source: as the job named them. pinned: what exactly that was.
        sha256: of the weights.
        told: what else the record says of them (run, step, dataset), by name.
        version: the chain of the version that they are, where they are one.
        run: the run that they came from, where it is on this server.
        unknown: what isn't known of them, a sentence each.
    """

    source: str | None
    pinned: str
    sha256: str | None
    told: dict[str, str]
    version: Lineage | None
    run: RunFacts | None
    unknown: list[str]


@dataclass(frozen=True)
class Lineage:
    """A registered version and all that led to it.

    Args:
        weights_sha256, weights_kind: of `model.safetensors`; "average" or "plain".
        model_id: of its logged model.
        run: None: it isn't there (any more).
        changed: facts of the run that weren't the same at every start, with all their values.
        is_fresh: whether the run began from fresh weights; None: unknown. parent: those that it began from otherwise.
        unknown: what isn't known, a sentence each.
    """

    uri: str
    aliases: list[str]
    registered: str | None
    model_id: str | None
    weights_sha256: str | None
    weights_kind: str | None
    metrics: dict[str, str]
    checkpoint: CheckpointFacts | None
    run: RunFacts | None
    changed: dict[str, list[str]]
    is_fresh: bool | None
    parent: ParentFacts | None
    decisions: list[dict[str, Any]]
    evaluations: list[EvaluationFacts]
    unknown: list[str]

    def facts(self) -> dict[str, Any]:
        """All of it as plain JSON values; numbers that aren't finite as text."""
        found: dict[str, Any] = plain_values(asdict(self))
        return found


def read_lineage(uri: str, section: TrackingTarget | None = None) -> Lineage:
    """The chain behind `models:/NAME@ALIAS` or `models:/NAME/3`.

    Raises:
        TrackingError: no such name, alias, version or server; what exists is listed.
    """
    store = registry_at(uri, section)
    with mlflow_errors(store, f"the lineage of {uri} can't be read"):
        client = open_client(store)
        return _of_version(client, find_version(client, uri), ())


def _of_version(client: MlflowClient, version: ModelVersion, before: tuple[str, ...]) -> Lineage:
    uri, tags, unknown = f"{REGISTRY_SCHEME}{version.name}/{version.version}", dict(version.tags), list[str]()
    run = find_run(client, version.run_id) if version.run_id else None
    if run is None:
        which = (
            f"run {version.run_id} isn't there (any more)"
            if version.run_id
            else "it was registered without one"
        )
        unknown.append(f"run, job, code, environment and datasets: {which}")
    facts = None if run is None else run_facts(run)
    checkpoint = checkpoint_facts(client, run, tags)
    if checkpoint is None:
        reason = "its tag was edited" if STEP_TAG in tags else "the release that registered it didn't say"
        unknown.append(f"checkpoint: {reason}")
    elif checkpoint.model_id is None:
        unknown.append(f"checkpoint: MLflow has none of step {checkpoint.step} of this run")
    if WEIGHTS_TAG not in tags:
        unknown.append(f"weights: the version has no tag {WEIGHTS_TAG}")
    decisions, problem = decision_facts(client, str(version.name), str(version.version))
    if problem is not None:
        unknown.append(f"decisions: {problem}")
    changed, problem = _changed(tags.get(CHANGED_TAG))
    if problem is not None:
        unknown.append(problem)
    recorded = tags if run is None else run.data.tags
    parent = _parent(client, recorded, (*before, uri))
    # Every release that trains has put a run's identity on record, and beside it the weights that it began from.
    is_fresh = False if parent is not None else True if "identity" in recorded else None
    if is_fresh is None:
        unknown.append("began from: nothing says whether the weights were fresh")
    return Lineage(
        uri=uri,
        aliases=sorted(map(str, version.aliases)),
        registered=moment(version.creation_timestamp),
        model_id=logged_model_of(version),
        weights_sha256=tags.get(WEIGHTS_TAG),
        weights_kind=tags.get("weights"),
        metrics={
            name.removeprefix("metric."): tags[name] for name in sorted(tags) if name.startswith("metric.")
        },
        checkpoint=checkpoint,
        run=facts,
        changed=changed,
        is_fresh=is_fresh,
        parent=parent,
        decisions=decisions,
        evaluations=evaluation_facts(client, uri),
        unknown=unknown,
    )


def _changed(text: str | None) -> tuple[dict[str, list[str]], str | None]:
    if text is None:
        return {}, None
    try:
        return parse_json(text.encode(), dict[str, list[str]]), None
    except DamagedJson:
        return (
            {},
            f"whether code and environment changed between starts: the tag {CHANGED_TAG} isn't what was written",
        )


def _parent(client: MlflowClient, tags: Mapping[str, str], before: tuple[str, ...]) -> ParentFacts | None:
    pinned = tags.get("init.pinned")
    if pinned is None:
        return None
    told = {
        name.removeprefix("init."): tags[name]
        for name in (
            "init.model",
            "init.run",
            "init.identity",
            "init.step",
            "init.dataset",
            "init.dataset_digest",
        )
        if name in tags
    }
    version, run, unknown = None, None, list[str]()
    if pinned.startswith(REGISTRY_SCHEME):
        version, problem = _parent_version(client, pinned, before)
    else:
        run, problem = _parent_run(client, told)
    if problem is not None:
        unknown.append(problem)
    sha256 = tags.get("init.weights_sha256")
    if version is not None and version.weights_sha256 not in (None, sha256):
        unknown.append(f"{pinned} has other weights now than those that the run began from")
    return ParentFacts(tags.get("init.source"), pinned, sha256, told, version, run, unknown)


def _parent_version(
    client: MlflowClient, pinned: str, before: tuple[str, ...]
) -> tuple[Lineage | None, str | None]:
    if pinned in before or len(before) > _MOST_PARENTS:
        return None, f"{pinned} would come from itself: a tag was edited"
    try:
        version = find_version(client, pinned)
    except TrackingError as error:
        return None, str(error)
    return _of_version(client, version, before), None


def _parent_run(client: MlflowClient, told: Mapping[str, str]) -> tuple[RunFacts | None, str | None]:
    """The run that a checkpoint or bundle came from: it is known by name and identity."""
    name, identity = told.get("run"), told.get("identity")
    if name is None:
        return None, "which run it came from isn't on record"
    wanted = None if identity is None else quoted(identity)
    if wanted is None:
        return None, f"it came from a run named {name}; its identity isn't on record"
    found = [
        run for run in search_everywhere(client, f"tags.identity = {wanted}") if run.info.run_name == name
    ]
    if len(found) != 1:
        return None, f"{len(found) or 'no'} runs named {name} with its identity are on this server"
    return run_facts(found[0]), None
