"""Relative paths of a job file: they point below CONVMLP_ROOT, or below the current directory where it isn't set.

The same file thus runs on a laptop, on a cluster with a shared mount and on Kubernetes.
"""

from __future__ import annotations

import os
from pathlib import Path

from convmlp_platform.errors import ConfigError
from data_prep.storage.urls import is_url

ROOT_VARIABLE = "CONVMLP_ROOT"
REGISTRY_SCHEME = "models:/"
"""How names of registered models begin: `models:/NAME@ALIAS`, `models:/NAME/3`."""


def root() -> Path:
    """The folder that relative paths of jobs start from, absolute."""
    return Path(os.environ.get(ROOT_VARIABLE) or Path.cwd()).expanduser().absolute()


def resolve(path: str, field: str) -> str:
    """`path` as an absolute path or URL.

    Raises ConfigError where a relative path would point into the copy of the code that Ray unpacks for
    one job (`ray job submit --working-dir`) and deletes afterwards, results included.
    """
    if is_url(path):
        return path
    expanded = Path(path).expanduser()
    if expanded.is_absolute():
        return str(expanded)
    base = root()
    if "working_dir_files" in base.parts:
        raise ConfigError(
            f"{field}: relative path {path!r} would lie in Ray's temporary copy of the code and be lost "
            f"with it; "
            f"set {ROOT_VARIABLE} to a folder that all nodes share "
            f'(ray job submit --runtime-env-json \'{{"env_vars": {{"{ROOT_VARIABLE}": "/shared"}}}}\' ...), '
            f"or pass an absolute path: --set {field}=/shared/{path}"
        )
    return str(base / expanded)


def resolve_folder(path: Path, field: str) -> Path:
    """`path` of a data preparation, absolute.

    Raises:
        ConfigError: as `resolve`; or it is a URL.
    """
    scheme, colon, rest = str(path).partition(":/")
    if colon and scheme.isalnum() and rest:
        raise ConfigError(
            f"{field}: data preparation works on mounted folders, not on {scheme}:// storage: mount it"
        )
    return Path(resolve(str(path), field))


def resolve_model(text: str, field: str) -> str:
    """A model's name for `find_model`: paths as `resolve` has them, names of registered models as they are."""
    return text if text.startswith(REGISTRY_SCHEME) else resolve(text, field)
