"""The MLflow server or store that a run uses, and the check that it is there."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from importlib.util import find_spec
from pathlib import Path

from convmlp_platform.config.paths import root
from convmlp_platform.config.sections.execution import TrackingSection, TrackingTarget
from convmlp_platform.tracking.delivery_state import SQLITE, without_secrets
from convmlp_platform.tracking.mlflow.server import access_problem, registry_problem, silence
from convmlp_platform.tracking.moved_store import artifact_folder, obstacle

logger = logging.getLogger(__name__)

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_DRIVERS = {"postgresql": "psycopg2", "postgresql+psycopg2": "psycopg2", "postgresql+psycopg": "psycopg"}
_DATABASES = ("postgresql", "mysql", "mssql")


def tracking_uri(section: TrackingTarget | None = None) -> str:
    """MLFLOW_TRACKING_URI; else `tracking.uri`; else `mlflow.db` below `config.paths.root()`.

    A relative SQLite path starts from that root too, as a worker's current directory is not the user's.
    """
    uri = os.environ.get(URI_VARIABLE) or (section.uri if section else None) or f"{SQLITE}mlflow.db"
    path = sqlite_path(uri)
    return uri if path is None else f"{SQLITE}{path}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite `uri`, absolute; None for any other kind of store."""
    if not uri.startswith(SQLITE):
        return None
    return (root() / Path(uri.removeprefix(SQLITE).partition("?")[0]).expanduser()).absolute()


def artifact_location(uri: str) -> str | None:
    """Returns the URI for the artifacts of new experiments; None: the server decides.

    It is the folder `mlartifacts` beside a SQLite file.
    """
    path = sqlite_path(uri)
    return None if path is None else artifact_folder(path).as_uri()


def check_tracking(section: TrackingTarget) -> list[str]:
    """Returns the problems that would surely make tracking fail, one sentence each.

    A server is asked for a few seconds at most. One that refuses the log-in, or whose certificate isn't trusted, is a
    problem, as neither passes by itself. A server that doesn't answer is only logged as a warning, also with
    `register_as`: records wait in the run's journal and the best model waits in its folder. Both can be sent when the
    server is back.
    """
    uri = tracking_uri(section)
    field = URI_VARIABLE if os.environ.get(URI_VARIABLE) else "tracking.uri"
    problem = _scheme_problem(uri, field) or _sqlite_problem(uri, field) or _driver_problem(uri, field)
    if problem:
        return [problem]
    if (problem := access_problem(uri)) is not None:
        return [f"{field} (={without_secrets(uri)!r}): {problem}"]
    if not _answers(uri, field):
        return []
    registered = section.register_as if isinstance(section, TrackingSection) else None
    if registered is None or (problem := registry_problem(uri)) is None:
        return []
    return [f"tracking.register_as (={registered.name!r}): {problem}, or --set tracking.register_as=null"]


def _scheme_problem(uri: str, field: str) -> str | None:
    scheme = re.match(r"([a-z]+)(\+[a-z0-9]+)?:", uri)
    shown = without_secrets(uri)
    if scheme is None or scheme[1] == "file":
        return (
            f"{field} (={shown!r}): MLflow 3 no longer writes to plain folders; "
            "use sqlite:///mlflow.db or the address of a server (http://HOST:PORT)"
        )
    if scheme[1] == "sqlite" and not uri.startswith(SQLITE):
        return f"{field} (={shown!r}): a SQLite address has three slashes: sqlite:///mlflow.db"
    if scheme[1] not in ("http", "https", "sqlite", "databricks", *_DATABASES):
        return (
            f"{field} (={shown!r}): MLflow knows no {scheme[1]}: stores; "
            f"use http(s), sqlite, {', '.join(_DATABASES)} or databricks"
        )
    return None


def _sqlite_problem(uri: str, field: str) -> str | None:
    path = sqlite_path(uri)
    if path is None:
        return None
    existing = path if path.exists() else next(folder for folder in path.parents if folder.exists())
    if path.is_dir() or (existing != path and not existing.is_dir()):
        return f"{field} (={uri!r}): {existing} is not what it should be (a file in a folder)"
    if not os.access(existing, os.W_OK):
        return f"{field} (={uri!r}): no permission to write {existing}"
    try:
        reason = obstacle(path)
    except sqlite3.Error as error:
        return f"{field} (={uri!r}): {path} can't be read as a SQLite store: {error}"
    return reason and f"{field} (={uri!r}): {reason}"


def _driver_problem(uri: str, field: str) -> str | None:
    """A database is asked by a driver, a package of its own."""
    package = _DRIVERS.get(uri.partition(":")[0])
    if package is None or find_spec(package) is not None:
        return None
    return (
        f"{field} (={without_secrets(uri)!r}): this address needs the package {package}, which isn't installed; "
        "pip install 'convmlp-platform[server]' brings psycopg, for postgresql+psycopg://..."
    )


def _answers(uri: str, field: str) -> bool:
    reason = silence(uri)
    if reason:
        logger.warning(
            "%s: MLflow at %s doesn't answer (%s): a run goes on without it, its records wait in its journal",
            field,
            without_secrets(uri),
            reason,
        )
    return reason is None
