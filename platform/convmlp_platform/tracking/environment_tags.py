"""The environment of a run: the versions of the code and of the libraries that decide its result."""

from __future__ import annotations

import getpass
import platform
import shutil
import socket
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = ("torch", "torchvision", "timm", "ray", "accelerate", "deepspeed", "mlflow")


def environment_tags() -> dict[str, str]:
    """Tags of code, libraries and host. Nothing is taken from environment variables, so no secret gets in.

    `git.commit` and `git.dirty` where the package runs from a git checkout, else `code.version`.
    """
    tags = {"python.version": platform.python_version(), "host.name": socket.gethostname()}
    with suppress(Exception):  # no name for the user id, as in many containers
        tags["mlflow.user"] = getpass.getuser()
    for library in _LIBRARIES:
        with suppress(PackageNotFoundError):
            tags[f"{library}.version"] = version(library)
    return tags | _code_tags()


def _code_tags() -> dict[str, str]:
    package = Path(__file__).resolve().parents[1]
    # An environment folder inside somebody else's checkout is not our commit: our file must be tracked there.
    commit = _git(package, "rev-parse", "HEAD") if _git(package, "ls-files", "__init__.py") else None
    if commit:
        dirty = _git(package, "status", "--porcelain", "--untracked-files=no") != ""
        return {"git.commit": commit, "git.dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}
    with suppress(PackageNotFoundError):
        return {"code.version": version("convmlp-platform")}
    return {"code.version": "unknown"}


def _git(folder: Path, *arguments: str) -> str | None:
    """git's answer, stripped; None where there is no git or no checkout."""
    program = shutil.which("git")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
