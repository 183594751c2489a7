"""The files behind a registered version: its weights, and what its run recorded of job, code and environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convmlp_platform.config.sections.execution import TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import WEIGHTS_NAME
from convmlp_platform.registry.registry import WEIGHTS_TAG, registry_at, resolve
from convmlp_platform.tracking.mlflow.client import fluent_at, open_client
from convmlp_platform.tracking.mlflow.server import mlflow_errors
from data_prep.storage.files import sha256_file


@dataclass(frozen=True)
class RegisteredWeights:
    """The weights of a version. `sha256`: of the file as it is; `recorded`: as it was registered, None: unknown."""

    file: Path
    sha256: str
    recorded: str | None


def registered_weights(uri: str, section: TrackingTarget | None, into: Path) -> RegisteredWeights:
    """Fetch the weights of a version.

    Args:
        uri: `models:/NAME/3`.
        into: an empty folder for downloads; a registry on this machine is read in place.

    Raises:
        TrackingError: the version or its files can't be had.
    """
    found = resolve(uri, section=section, into=into)
    file = found.bundle / WEIGHTS_NAME
    try:
        return RegisteredWeights(file, sha256_file(file), found.tags.get(WEIGHTS_TAG))
    except OSError as error:
        raise TrackingError(f"{uri}: its weights can't be read: {error}") from None


def fetch_run_files(
    run_id: str, folder: str, names: Sequence[str], section: TrackingTarget | None, into: Path
) -> dict[str, Path]:
    """Fetch those of the artifacts `folder`/NAME of a run that are there; name → file below `into`.

    Raises:
        TrackingError: the server or its artifact store doesn't answer.
    """
    store = registry_at(f"run {run_id}", section)
    with mlflow_errors(store, f"the files of run {run_id} can't be read"):
        client = open_client(store)
        there = {one.path for one in client.list_artifacts(run_id, folder)}
        wanted = [name for name in names if f"{folder}/{name}" in there]
        with fluent_at(store):
            return {
                name: Path(client.download_artifacts(run_id, f"{folder}/{name}", str(into)))
                for name in wanted
            }
