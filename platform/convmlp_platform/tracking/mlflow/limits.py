"""The names and lengths that MLflow's columns hold, and ours cut to them."""

from __future__ import annotations

import re

MAX_VALUE_LENGTH = 6000
"""Of a param; tags may have 8000, artifact paths less."""
MAX_KEY_LENGTH = 250
_DIGEST_LENGTH = 36
_FORBIDDEN_IN_KEYS = re.compile(r"[^\w\-. :/]")
_FORBIDDEN_IN_MODEL_NAMES = re.compile(r"[/:.%\"']")


def valid_key(key: str) -> str:
    """The name of a metric, param or tag as MLflow takes it."""
    return _FORBIDDEN_IN_KEYS.sub("_", key)[:MAX_KEY_LENGTH]


def valid_model_name(name: str) -> str:
    """The name of a logged model as MLflow takes it."""
    return _FORBIDDEN_IN_MODEL_NAMES.sub("_", name)[:MAX_KEY_LENGTH]


def dataset_name(name: str, split: str) -> str:
    """The name of a split of a dataset: MLflow knows a run's inputs apart by name and digest alone."""
    return f"{name}/{split}" if split else name


def short_digest(digest: str) -> str:
    """A dataset's digest as far as MLflow's column holds it; a run's inputs and its metrics name the same."""
    return digest.removeprefix("sha256:")[:_DIGEST_LENGTH]
