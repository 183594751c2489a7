"""Registered models: a bundle goes in under a name and is found by `models:/NAME@ALIAS` or `models:/NAME/3`.

A version carries its lineage as tags: what the caller gives (dataset digest, git commit, run, checkpoint),
its task, the metrics as `metric.NAME` and which of them decides, and the hash of its weights, by which registering
the same result twice is noticed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from convmlp_platform.config.sections.execution import TrackingSection, TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import WEIGHTS_NAME, read_spec
from convmlp_platform.registry.decision_log import Decision, who
from convmlp_platform.registry.log_model import log_bundle
from convmlp_platform.registry.promotions import (
    SAMPLES_FILE,
    SAMPLES_FOLDER,
    SAMPLES_TAG,
    PromotionDesk,
    no_model,
)
from convmlp_platform.tracking.mlflow.client import ensure_experiment, fluent_at, open_client, versions_of
from convmlp_platform.tracking.mlflow.delivery import run_exists
from convmlp_platform.tracking.mlflow.server import mlflow_errors
from convmlp_platform.tracking.mlflow.tracking_uri import sqlite_path, tracking_uri
from data_prep.storage.files import sha256_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

DATASET_DIGEST_TAG, SPLIT_TAG = "dataset.digest", "dataset.split"
SEEN_TAG = "dataset.seen_share"
"""Share of the images of its evaluation that a version was trained on."""
CANDIDATE = "candidate"
"""The alias of the newest version, which training gives: `kind: promote` judges it."""
_MAX_SEEN_SHARE = 0.01
TASK_TAG, GATE_TAG = "task", "gate.metric"
_FIRST_GATE = "top1"  # of versions from when the registry held classifiers only, which have no such tag
WEIGHTS_TAG = "weights.sha256"
_ATTEMPTS = 5


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model. `alias`: that it has now; `reason`: why it is not the champion, or is."""

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
    training_samples: bytes | None = None,
) -> RegisteredVersion:
    """Log `bundle` as the run's pyfunc model, register it by `section.register_as`, and nominate it: it gets the alias
    `candidate`. Weights that are a version of the name already make no second one.

    With `register_as.automatic` it takes `register_as.alias`, too, where nobody ever had it, or where its holder was
    measured on the same images (tags "dataset.digest", taken from the bundle's provenance where `tags` lacks it, and
    "dataset.split") and had no better value of the task's metric: top1, box_ap, mask_ap or miou (tag "gate.metric").
    That is on record in the log of promotions.

    Args:
        training_samples: the record of what it was trained on (registry.training_samples), kept with the run.
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
            if training_samples is not None:
                all_tags[SAMPLES_TAG] = _log_samples(client, run_id, training_samples)
            version = log_bundle(uri, run_id, bundle, example_image, name=name, tags=all_tags)
        client.set_registered_model_alias(name, CANDIDATE, version)
    if not section.register_as.automatic:
        reason = f"nominated as {CANDIDATE}: `convmlp registry promote {name}` compares it with the {alias}"
        return RegisteredVersion(name, version, CANDIDATE, f"models:/{name}@{CANDIDATE}", reason)
    moves, reason = _promote(section, name, alias, version, all_tags)
    if not moves:
        logger.warning("models:/%s/%s is registered but does not become %s: %s", name, version, alias, reason)
    target = f"models:/{name}@{alias}" if moves else f"models:/{name}/{version}"
    return RegisteredVersion(name, version, alias if moves else CANDIDATE, target, reason)


def _log_samples(client: MlflowClient, run_id: str, content: bytes) -> str:
    """The record as an artifact of the run; its SHA-256."""
    with tempfile.TemporaryDirectory(prefix="convmlp-samples-") as folder:
        path = Path(folder) / SAMPLES_FILE
        path.write_bytes(content)
        client.log_artifact(run_id, str(path), SAMPLES_FOLDER)
    return hashlib.sha256(content).hexdigest()


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
    store = registry_at(uri, section)
    with mlflow_errors(store, f"{uri} can't be looked up"):
        client = open_client(store)
        version = find_version(client, uri)
        bundle = _bundle_of(store, uri, f"models:/{version.name}/{version.version}", into)
    return ResolvedModel(
        bundle,
        name=str(version.name),
        version=str(version.version),
        aliases=tuple(version.aliases),
        tags=dict(version.tags),
    )


def _promote(
    section: TrackingSection, name: str, alias: str, version: str, candidate: Mapping[str, str]
) -> tuple[bool, str]:
    """Give the alias to a version by the figures of training, on record; whether it has it now, and why (not)."""
    try:
        with PromotionDesk(section, name, alias) as desk:
            for _ in range(_ATTEMPTS):
                held = desk.champion()
                if held.version == version:
                    return True, f"is {alias} already"
                if held.compared_with is None:
                    moves, reason = first_verdict(alias, candidate)
                else:
                    rival = f"models:/{name}/{held.compared_with}"
                    moves, reason = alias_verdict(rival, desk.tags_of(held.compared_with), candidate)
                if not moves:
                    return False, reason
                decision = Decision("automatic", alias, held.version, version, who(), reason)
                if desk.decide(decision)[1]:
                    desk.client.set_model_version_tag(name, version, f"alias.{alias}", reason)
                    return True, reason
    except TrackingError as error:
        return False, str(error)
    return False, f"{alias} moved {_ATTEMPTS} times meanwhile"


def first_verdict(alias: str, candidate: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a version tagged `candidate` may be the first to have the alias; and why (not)."""
    if reason := _unfit(candidate):
        return False, reason
    return True, f"first {alias}"


def alias_verdict(holder: str, held: Mapping[str, str], candidate: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a version tagged `candidate` may take the alias from `holder`, tagged `held`; and why (not).

    A holder whose figure is missing or no number can be replaced by one that has a figure.
    """
    metric, other_metric = candidate.get(GATE_TAG, _FIRST_GATE), held.get(GATE_TAG, _FIRST_GATE)
    digest, other = candidate.get(DATASET_DIGEST_TAG), held.get(DATASET_DIGEST_TAG)
    if reason := _unfit(candidate):
        return False, reason
    if not digest or digest != other:
        return (
            False,
            f"{holder} was measured on another dataset ({other or 'not recorded'}, not {digest or 'any'})",
        )
    split, other_split = candidate.get(SPLIT_TAG), held.get(SPLIT_TAG)
    if split and other_split and split != other_split:
        return False, f"{holder} was measured on split {other_split!r}, not {split!r}"
    if metric != other_metric:
        return False, f"{holder} is of another task: judged by {other_metric}, not {metric}"
    new, old = _figure(candidate), _figure(held)
    assert new is not None
    if old is None:
        return True, f"{metric} {new:.4f}; {holder} has no {metric} that is a number"
    if new >= old:
        return True, f"{metric} {new:.4f} is not below {old:.4f} of {holder}"
    return False, f"{metric} {new:.4f} is below {old:.4f} of {holder}"


def _unfit(candidate: Mapping[str, str]) -> str:
    """The reason why a version can't have the alias by its own figures, or nothing."""
    metric = candidate.get(GATE_TAG, _FIRST_GATE)
    if _figure(candidate) is None:
        return f"its {metric} is {candidate.get(f'metric.{metric}', 'not recorded')}, which is no figure to judge it by"
    try:
        seen = float(candidate.get(SEEN_TAG, "0"))
    except ValueError:
        seen = math.inf
    if not seen <= _MAX_SEEN_SHARE:
        return f"{seen:.1%} of the images of its evaluation are among those that it was trained on"
    return ""


def _figure(tags: Mapping[str, str]) -> float | None:
    """The deciding metric in per cent; None where it is missing, no number, or none that a metric can have."""
    try:
        value = float(tags[f"metric.{tags.get(GATE_TAG, _FIRST_GATE)}"])
    except (KeyError, ValueError):
        return None
    return value if 0.0 <= value <= 100.0 else None


def _existing_version(client: MlflowClient, name: str, weights: str) -> str | None:
    found = client.search_model_versions(
        f"name='{name}' and tags.`{WEIGHTS_TAG}` = '{weights}'", max_results=1
    )
    return str(found[0].version) if found else None


def registry_at(uri: str, section: TrackingTarget | None = None) -> str:
    """The address of the registry that is asked for `uri`.

    Raises:
        TrackingError: it would be a SQLite file that isn't there.
    """
    store = tracking_uri(section)
    path = sqlite_path(store)
    if path is not None and not path.exists():
        raise TrackingError(
            f"{uri}: there is no model registry at {path}; go to the folder the job ran in, "
            "or set CONVMLP_ROOT to it or MLFLOW_TRACKING_URI to the server"
        )
    return store


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/3` names.

    Raises:
        TrackingError: there is none; what exists is listed.
        MlflowException: the server's.
    """
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
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return no_model(client, name)
    versions = sorted(int(one.version) for one in versions_of(client, name))
    aliases = ", ".join(f"@{alias}" for alias in sorted(model.aliases)) or "none"
    return (
        f"model {name!r} has no alias or version {wanted!r}; "
        f"its aliases: {aliases}; its versions: {', '.join(map(str, versions)) or 'none'}"
    )


def _bundle_of(store: str, uri: str, version: str, into: Path | None) -> Path:
    """The bundle of `version`, by what its description says; nothing else of the model is downloaded."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    description = _download(store, f"{version}/MLmodel", into)
    try:
        path = str(Model.load(str(description)).flavors["python_function"]["artifacts"]["bundle"]["path"])
    except (KeyError, TypeError, OSError, MlflowException):
        raise TrackingError(f"{uri}: not a model that this platform registered (no bundle in it)") from None
    return _download(store, f"{version}/{path}", into)


def _download(store: str, uri: str, into: Path | None) -> Path:
    from mlflow.artifacts import download_artifacts

    target = str(into) if into is not None and sqlite_path(store) is None else None
    with fluent_at(store):  # with `tracking_uri=` alone it looks models:/ up elsewhere
        return Path(download_artifacts(artifact_uri=uri, dst_path=target))
