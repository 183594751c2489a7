"""A version's part of the chain: its checkpoint, the decisions on it, its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convmlp_platform.errors import TrackingError
from convmlp_platform.registry import decision_log
from convmlp_platform.registry.lineage.run_facts import moment, quoted, search_everywhere, whole_number

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STEP_TAG, LOCATION_TAG = "checkpoint.step", "checkpoint.location"


@dataclass(frozen=True)
class CheckpointFacts:
    """The checkpoint with the registered weights. `model_id`: its logged model; None: MLflow has none, and `state` and
    `metrics` are unknown."""

    step: int
    location: str | None
    state: str | None = None
    digest: str | None = None
    model_id: str | None = None
    metrics: dict[str, float] | None = None


@dataclass(frozen=True)
class EvaluationFacts:
    """An evaluation of the version on record: `kind: evaluate`."""

    run_id: str
    name: str | None
    at: str | None
    dataset: str
    digest: str | None
    split: str | None
    metrics: dict[str, float]


def checkpoint_facts(
    client: MlflowClient, run: Run | None, tags: Mapping[str, str]
) -> CheckpointFacts | None:
    """The checkpoint that a version's tags name; None: they name none."""
    step = whole_number(tags.get(STEP_TAG))
    if step is None:
        return None
    known = CheckpointFacts(step, tags.get(LOCATION_TAG))
    if run is None:
        return known
    wanted = f"source_run_id = '{run.info.run_id}' AND model_type = 'checkpoint' AND tags.step = '{step}'"
    found = list(client.search_logged_models([str(run.info.experiment_id)], wanted, max_results=50))
    # A step that was rolled back and done again has two: the later one is the one that counts.
    found.sort(key=lambda model: model.creation_timestamp)
    if not found:
        return known
    model = found[-1]
    return CheckpointFacts(
        step,
        model.tags.get("location", known.location),
        model.tags.get("state"),
        model.params.get("digest"),
        str(model.model_id),
        {metric.key: metric.value for metric in model.metrics or ()},
    )


def decision_facts(client: MlflowClient, name: str, version: str) -> tuple[list[dict[str, Any]], str | None]:
    """The decisions that a version was part of, oldest first; and the reason why they aren't known, if so."""
    try:
        decisions = decision_log.read_log(client, name)
    except TrackingError as error:
        return [], str(error)
    done = {
        one.number
        for alias in {d.alias for d in decisions}
        for one in decision_log.in_force(decisions, alias)
    }
    return [
        {
            "number": one.number,
            "at": moment(round(1000 * one.at)),
            "kind": one.kind,
            "alias": one.alias,
            "from": one.held,
            "to": one.version,
            "who": one.who,
            "reason": one.reason,
            "moved": one.number in done,
        }
        for one in decisions
        if version in (one.held, one.version)
    ], None


def evaluation_facts(client: MlflowClient, uri: str) -> list[EvaluationFacts]:
    """The evaluations of `models:/NAME/3`, oldest first."""
    found: list[EvaluationFacts] = []
    if (name := quoted(uri)) is None:
        return found
    for run in search_everywhere(client, f"tags.kind = 'evaluate' and tags.`model.pinned` = {name}"):
        data = run.inputs.dataset_inputs[0] if run.inputs and run.inputs.dataset_inputs else None
        tags = {} if data is None else {tag.key: tag.value for tag in data.tags}
        found.append(
            EvaluationFacts(
                run_id=str(run.info.run_id),
                name=run.info.run_name,
                at=moment(run.info.start_time),
                dataset=tags.get("dataset") or ("unknown" if data is None else data.dataset.name),
                digest=tags.get("digest"),
                split=tags.get("split") or run.data.tags.get("split"),
                metrics={name: value for name, value in run.data.metrics.items() if name.startswith("eval/")},
            )
        )
    return found
