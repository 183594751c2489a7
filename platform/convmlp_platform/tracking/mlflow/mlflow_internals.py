"""MLflow's names that its documentation doesn't promise. tests/.../tracking/test_mlflow_internals.py fails by name
where an upgrade takes one away. Tried with MLflow 3.17.2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import Response

EXTERNAL_TAG = "mlflow.model.isExternal"
"""Marks a logged model whose files lie elsewhere, as `mlflow.create_external_model` does, which uploads a file, too."""


@contextmanager
def silenced() -> Iterator[None]:
    """Within: MLflow prints nothing of its own ("Successfully registered model"); errors are raised as ever.

    It prints such lines whatever the level of its loggers is.
    """
    from mlflow.utils.logging_utils import MLFLOW_LOGGING_STREAM as stream

    before, stream.enabled = stream.enabled, False
    try:
        yield
    finally:
        stream.enabled = before


def ask(uri: str, path: str, seconds: float) -> Response:
    """GET a path of the server at `uri` as MLflow's client does, with its proxies, certificates and log-in, once.

    A client's public methods try again for minutes, and there is none for `/health`.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(
        get_default_host_creds(uri), path, "GET", max_retries=0, timeout=seconds, raise_on_status=False
    )
