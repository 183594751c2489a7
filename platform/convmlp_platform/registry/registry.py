"""Registered models: a bundle goes in under a name and is found by `models:/NAME@ALIAS` or `models:/NAME/3`.

A version carries its lineage as tags: what the caller gives (dataset digest, git commit, run, checkpoint),
its task, the metrics as `metric.NAME` and which of them decides, and the hash of its weights, by which registering
the same result twice is noticed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from convmlp_platform.config.sections.execution import TrackingSection, TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import WEIGHTS_NAME, read_spec
from convmlp_platform.registry.log_model import log_bundle
from convmlp_platform.tracking.mlflow.client import ensure_experiment, fluent_at, open_client
from convmlp_platform.tracking.mlflow.delivery import run_exists
from convmlp_platform.tracking.mlflow.server import mlflow_errors
from convmlp_platform.tracking.mlflow.tracking_uri import sqlite_path, tracking_uri
from data_prep.storage.files import sha256_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

DATASET_DIGEST_TAG = "dataset.digest"
TASK_TAG, GATE_TAG = "task", "gate.metric"
_FIRST_GATE = "top1"  # of versions from when the registry held classifiers only, which have no such tag
WEIGHTS_TAG = "weights.sha256"


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model. `alias` is None where the gate kept it; `reason` says why."""

    name: str
    version: str
    alias: str | None
    uri: str
    reason: str


@dataclass(frozen=True)
class ResolvedModel:
    """A looked-up model: its bundle's folder on this machine, and what the registry says about it."""

    bundle: Path
    name: str | None = None
    version: str | None = None
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


def register_bundle(
    section: TrackingSection,
    *,
    run_id: str | None,
    bundle: Path,
    example_image: bytes,
    metrics: dict[str, float],
    tags: dict[str, str],
) -> RegisteredVersion:
    """Log `bundle` as the run's pyfunc model, register it by `section.register_as`, maybe move the alias.

    The alias moves where nobody holds it, or where its holder was measured on the same dataset (tag
    "dataset.digest", taken from the bundle's provenance `dataset_digest` where `tags` lacks it) and had no better
    value of the task's metric: top1, box_ap, mask_ap or miou (tag "gate.metric"). Weights that are a version of the
    name already make no second one.

    Args:
        run_id: the MLflow run it came from; a run of its own is made where that is None or gone.
        example_image: an encoded image file for the model's input example.
        metrics: of the evaluation; the task's own decides about the alias.

    Raises:
        TrackingError: `register_as` isn't set, `bundle` is none, or MLflow can't take it (`bundle` stays).
    """
    if section.register_as is None:
        raise TrackingError(
            "tracking.register_as is not set, so there is no name to register the model under"
        )
    name, alias = section.register_as.name, section.register_as.alias
    spec = read_spec(bundle)
    digest = tags.get(DATASET_DIGEST_TAG) or str(spec.provenance.get("dataset_digest", ""))
    all_tags = {k: str(v) for k, v in tags.items()} | {
        f"metric.{k}": repr(float(v)) for k, v in metrics.items()
    }
    all_tags |= {DATASET_DIGEST_TAG: digest, WEIGHTS_TAG: sha256_file(bundle / WEIGHTS_NAME)}
    all_tags |= {TASK_TAG: spec.task.name, GATE_TAG: spec.task.best_metric}
    uri = tracking_uri(section)
    with mlflow_errors(uri, f"model {name!r} is not registered; its bundle stays in {bundle}"):
        client = open_client(uri)
        version = _existing_version(client, name, all_tags[WEIGHTS_TAG])
        if version is None:
            if run_id is None or not run_exists(client, run_id):
                run = client.create_run(
                    ensure_experiment(client, uri, section.experiment), run_name=f"register-{name}"
                )
                run_id = str(run.info.run_id)
            version = log_bundle(uri, run_id, bundle, example_image, name=name, tags=all_tags)
        moves, reason = _gate(client, name, alias, version, all_tags)
        if moves:
            client.set_registered_model_alias(name, alias, version)
            client.set_model_version_tag(name, version, f"alias.{alias}", reason)
    if not moves:
        logger.warning("models:/%s/%s is registered but does not become %s: %s", name, version, alias, reason)
    target = f"models:/{name}@{alias}" if moves else f"models:/{name}/{version}"
    return RegisteredVersion(name, version, alias if moves else None, target, reason)


def resolve(uri: str, *, section: TrackingTarget | None = None, into: Path | None = None) -> ResolvedModel:
    """The bundle behind `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a local bundle folder.

    Args:
        into: an empty folder for downloads; a registry on this machine is read in place without it.

    Raises:
        TrackingError: no such folder, name, alias, version or server; what exists is listed.
    """
    if not uri.startswith("models:/"):
        folder = Path(uri)
        spec = read_spec(folder)
        return ResolvedModel(folder, tags={k: str(v) for k, v in spec.provenance.items()})
    store = tracking_uri(section)
    path = sqlite_path(store)
    if path is not None and not path.exists():
        raise TrackingError(
            f"{uri}: there is no model registry at {path}; go to the folder the job ran in, "
            "or set CONVMLP_ROOT to it or MLFLOW_TRACKING_URI to the server"
        )
    with mlflow_errors(store, f"{uri} can't be looked up"):
        client = open_client(store)
        version = _find_version(client, uri)
        local = _download(store, f"models:/{version.name}/{version.version}", into)
    return ResolvedModel(
        _bundle_in(local, uri),
        name=str(version.name),
        version=str(version.version),
        aliases=tuple(version.aliases),
        tags=dict(version.tags),
    )


def _gate(
    client: MlflowClient, name: str, alias: str, version: str, candidate: Mapping[str, str]
) -> tuple[bool, str]:
    holder = client.get_registered_model(name).aliases.get(alias)
    if holder is None:
        return True, f"first {alias}"
    if str(holder) == version:
        return True, f"is {alias} already"
    return alias_verdict(f"models:/{name}/{holder}", client.get_model_version(name, holder).tags, candidate)


def alias_verdict(holder: str, held: Mapping[str, str], candidate: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a version tagged `candidate` may take the alias from `holder`, tagged `held`; and why (not)."""
    metric, other_metric = candidate.get(GATE_TAG, _FIRST_GATE), held.get(GATE_TAG, _FIRST_GATE)
    key = f"metric.{metric}"
    digest, other = candidate.get(DATASET_DIGEST_TAG), held.get(DATASET_DIGEST_TAG)
    if not digest or digest != other:
        return (
            False,
            f"{holder} was measured on another dataset ({other or 'not recorded'}, not {digest or 'any'})",
        )
    if metric != other_metric:
        return False, f"{holder} is of another task: judged by {other_metric}, not {metric}"
    if key not in candidate or key not in held:
        return False, f"no {metric} to compare it with {holder} by"
    new, old = float(candidate[key]), float(held[key])
    if new >= old:
        return True, f"{metric} {new:.4f} is not below {old:.4f} of {holder}"
    return False, f"{metric} {new:.4f} is below {old:.4f} of {holder}"


def _existing_version(client: MlflowClient, name: str, weights: str) -> str | None:
    found = client.search_model_versions(
        f"name='{name}' and tags.`{WEIGHTS_TAG}` = '{weights}'", max_results=1
    )
    return str(found[0].version) if found else None


def _find_version(client: MlflowClient, uri: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    name, separator, wanted = uri.removeprefix("models:/").partition("@")
    if not separator:
        name, separator, wanted = name.partition("/")
    if not name or not wanted or "/" in wanted:
        raise TrackingError(f"{uri}: must be models:/NAME@ALIAS or models:/NAME/VERSION")
    try:
        if uri[len("models:/") + len(name)] == "@":
            return client.get_model_version_by_alias(name, wanted)
        return client.get_model_version(name, wanted)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise TrackingError(f"{uri}: {_what_exists(client, name, wanted)}") from None


def _what_exists(client: MlflowClient, name: str, wanted: str) -> str:
    models = {model.name: model for model in client.search_registered_models(max_results=100)}
    if name not in models:
        known = ", ".join(sorted(models)) or "none yet"
        return f"no registered model is named {name!r}; there are: {known}"
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name='{name}'"))
    aliases = ", ".join(f"@{alias}" for alias in sorted(models[name].aliases)) or "none"
    return (
        f"model {name!r} has no alias or version {wanted!r}; "
        f"its aliases: {aliases}; its versions: {', '.join(map(str, versions)) or 'none'}"
    )


def _bundle_in(model: Path, uri: str) -> Path:
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        return model / str(Model.load(str(model)).flavors["python_function"]["artifacts"]["bundle"]["path"])
    except (KeyError, OSError, MlflowException):
        raise TrackingError(f"{uri}: not a model that this platform registered (no bundle in it)") from None


def _download(store: str, uri: str, into: Path | None) -> Path:
    from mlflow.artifacts import download_artifacts

    target = str(into) if into is not None and sqlite_path(store) is None else None
    with fluent_at(store):  # with `tracking_uri=` alone it looks models:/ up elsewhere
        return Path(download_artifacts(artifact_uri=uri, dst_path=target))
