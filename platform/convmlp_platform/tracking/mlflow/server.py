"""MLflow's server as MLflow's own client reaches it: its proxies, certificates, log-in; and its errors as text."""

from __future__ import annotations

import base64
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from convmlp_platform.errors import PlatformError, TrackingError
from convmlp_platform.tracking.delivery_state import split_login, without_secrets
from convmlp_platform.tracking.mlflow.mlflow_internals import ask
from data_prep.storage.urls import scrubbed

if TYPE_CHECKING:
    from requests import Response

logger = logging.getLogger(__name__)

_SECONDS = 3
_SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
)
_REASON = re.compile(r"\[(Errno -?\d+|SSL: \w+)\] (\([^)]*\)|[^'\"()])*")
_SHORTEST_SECRET = 3
_LONGEST_TEXT = 400
_ANYTHING = "/api/2.0/mlflow/experiments/get?experiment_id=0"
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "CA certificate bundle")
_NO_MODEL = "/api/2.0/mlflow/logged-models/m-00000000000000000000000000000000"


def settle_mlflow() -> None:
    """Set what MLflow reads from the environment, where the user has set nothing; before it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # between a job's own lines
    # MLflow's own defaults (7 retries of 120 s each) keep a caller waiting for a quarter of an hour.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


def silence(uri: str) -> str | None:
    """Returns the reason why the server at `uri` doesn't answer within 3 s; None if it does, or is no server."""
    if not _is_server(uri):
        return None
    try:
        _ask(uri, "/health")
    except Exception as error:
        return error_text(error, uri)
    return None  # whoever answers, if only to ask for a password, is there


def access_problem(uri: str) -> str | None:
    """Returns the reason why a server that is there lets nobody in who comes with this environment: its certificate
    isn't trusted, or it refuses the log-in. None: it lets us in, it is away, or `uri` is no server.

    Neither passes by itself, as an outage does.
    """
    if not _is_server(uri):
        return None
    shown = without_secrets(uri)
    try:
        answer = _ask(uri, _ANYTHING)
    except Exception as error:
        text = error_text(error, uri)
        if not any(part in text for part in _UNTRUSTED):
            return None
        return (
            f"the certificate of MLflow at {shown} can't be checked: {text}; MLFLOW_TRACKING_SERVER_CERT_PATH names "
            "the file with the certificate of a private authority"
        )
    if answer.status_code != 401:
        return None
    given = any(os.environ.get(name) for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"))
    reason = "doesn't know this user and password" if given or split_login(uri)[1] else "asks for a log-in"
    return (
        f"MLflow at {shown} {reason} (401): MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN, say who you are"
    )


def registry_problem(uri: str) -> str | None:
    """Returns the reason why a server that answers can't take registered models: it is older than MLflow 3.0.

    MLflow 3.0 introduced logged models. The result is None if the server can take them, if it gives no clear answer,
    or if `uri` is no server.
    """
    if not _is_server(uri):
        return None
    try:
        answer = _ask(uri, _NO_MODEL)
        if answer.status_code != 404 or "error_code" in answer.text:
            return None
        release = _ask(uri, "/version").text.strip()
    except Exception as error:
        logger.debug("MLflow at %s: %s", without_secrets(uri), error_text(error, uri))
        return None
    named = f" {release}" if re.fullmatch(r"\d+(\.\w+)+", release) else ""
    return f"the MLflow{named} at {without_secrets(uri)} is too old for it: it takes release 3.0 or newer"


def error_text(error: BaseException, uri: str) -> str:
    """An error of MLflow, or of the libraries below it, as one line without secrets.

    Args:
        error: the exception.
        uri: the tracking URI, which may hold user and password, and which such errors like to quote.
    """
    text = str(error).strip()
    if "(Caused by " in text:  # only the reason is news, the rest repeats the address
        text = text.rpartition("(Caused by ")[2].removesuffix(")")
        reason = _REASON.search(text)
        text = reason[0] if reason else text
    text = text.replace(uri, without_secrets(uri))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    first = next(iter(scrubbed(text).splitlines()), "")
    return first[:_LONGEST_TEXT] or type(error).__name__


@contextmanager
def mlflow_errors(uri: str, consequence: str) -> Iterator[None]:
    """Within: what MLflow, its database or its artifact store raise becomes one sentence.

    Raises:
        TrackingError: `consequence`, and the reason as `error_text` gives it.
    """
    try:
        yield
    except PlatformError:
        raise
    except Exception as error:
        text = error_text(error, uri)
        logger.debug("%s: %s", type(error).__name__, text)
        # Without the cause: a traceback would print its text as it is.
        raise TrackingError(f"{consequence}: MLflow at {without_secrets(uri)} says: {text}") from None


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _ask(uri: str, path: str) -> Response:
    settle_mlflow()
    return ask(uri, path, _SECONDS)


def _secrets(uri: str) -> set[str]:
    """All forms in which a password or token may stand in a message."""
    found = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    logins = {
        (os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    }
    for one in (uri, os.environ.get("MLFLOW_TRACKING_URI", "")):
        user, _, password = split_login(one)[1].removesuffix("@").partition(":")
        found |= {password, unquote(password), quote(unquote(password), safe="")}
        logins.add((unquote(user), unquote(password)))
    for user, password in logins:
        if password:
            found.add(base64.b64encode(f"{user}:{password}".encode()).decode())
    return {secret for secret in found if len(secret) >= _SHORTEST_SECRET}
