"""The environment of a run: the versions of the code and of the libraries that decide its result, as tags."""

from __future__ import annotations

import getpass
import platform
import socket
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from convmlp_platform.tracking.provenance.code_state import CodeState, code_tags, this_code
from convmlp_platform.tracking.provenance.frozen_environment import cpu_model

_LIBRARIES = ("torch", "torchvision", "timm", "ray", "accelerate", "deepspeed", "mlflow")


def environment_tags(code: CodeState | None = None) -> dict[str, str]:
    """Tags of code, libraries and host. Of environment variables only the commit is taken, so no secret gets in.

    Args:
        code: what is known of it; default: what this process knows itself. Its tags: `code_state.code_tags`.
    """
    tags = {
        "python.version": platform.python_version(),
        "host.name": socket.gethostname(),
        "cpu.model": cpu_model(),
    }
    with suppress(Exception):  # no name for the user id, as in many containers
        tags["mlflow.user"] = getpass.getuser()
    return tags | _versions() | code_tags(this_code() if code is None else code)


@cache
def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[f"{library}.version"] = version(library)
    return found
