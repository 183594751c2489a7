"""MLflow's undocumented names that `tracking/mlflow/mlflow_internals` uses: an upgrade without them fails by name."""

from __future__ import annotations

import importlib
import inspect

import pytest

NEEDED_BY = (
    "asking an MLflow server whether it is there, and how old (tracking/mlflow/server.py), depends on it"
)


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("mlflow.utils.credentials", "get_default_host_creds", {"store_uri"}),
        ("mlflow.utils.rest_utils", "http_request",
         {"host_creds", "endpoint", "method", "max_retries", "timeout", "raise_on_status"}),
    ],
)  # fmt: skip
def test_it_is_there_with_its_arguments(module: str, name: str, arguments: set[str]) -> None:
    function = getattr(importlib.import_module(module), name, None)
    assert function is not None, f"MLflow: no {module}.{name}; {NEEDED_BY}"
    found = inspect.signature(function).parameters.keys()
    assert arguments <= found, f"MLflow: {module}.{name} takes no {arguments - found}; {NEEDED_BY}"


def test_the_mark_of_an_external_model_is_still_the_same() -> None:
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    from convmlp_platform.tracking.mlflow.mlflow_internals import EXTERNAL_TAG

    needed = "the models of checkpoints (tracking/mlflow/checkpoint_models.py) carry it"
    assert MLFLOW_MODEL_IS_EXTERNAL == EXTERNAL_TAG, f"MLflow: external models have another tag; {needed}"


def test_a_servers_credentials_hold_its_address() -> None:
    from mlflow.utils.credentials import get_default_host_creds

    found = get_default_host_creds("http://127.0.0.1:1").host
    assert found == "http://127.0.0.1:1", f"MLflow: get_default_host_creds gives {found!r}; {NEEDED_BY}"


def test_mlflow_prints_nothing_while_it_is_silenced(capfd: pytest.CaptureFixture[str]) -> None:
    from mlflow.utils.logging_utils import eprint

    from convmlp_platform.tracking.mlflow.mlflow_internals import silenced

    with silenced():
        eprint("Successfully registered model 'x'.")
    assert capfd.readouterr().err == "", (
        "MLflow: its lines go elsewhere; a registration prints between a job's lines"
    )
    eprint("again")
    assert capfd.readouterr().err == "again\n"
