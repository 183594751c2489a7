"""The part of the driver's environment that must be the same in every process of a job, on every node.

Ray writes a job's runtime environment into logs that everybody on a node may read, and shows it in its API. So only
what is surely no secret travels there (`shared_env_vars`), by an allow-list. All else that the user has set travels as
an argument of calls (`private_variables`): Ray writes no arguments to files, and its channels ask for the token. The
process at the other end puts it into its own memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from convmlp_platform.config.paths import ROOT_VARIABLE, root
from convmlp_platform.launch.cluster.working_dir import unpacked_working_dir
from data_prep import console
from data_prep.storage.secret_texts import is_secret_name
from data_prep.storage.urls import scrubbed

# Where the tracking server is and how to log in; of its options what a user has set. All else that is a node's own
# (AWS_*, proxies) is set on the node.
_PRIVATE_PREFIXES = ("MLFLOW_",)


def shared_env_vars(threads: int, *, own_modules: bool = False) -> dict[str, str]:
    """Variables for all processes of the job, in Ray's runtime environment: where paths start, `threads` for OpenMP,
    code. Never a secret.

    Workers are started by the cluster's nodes and inherit those nodes' environment, not the driver's.

    Args:
        threads: for OpenMP.
        own_modules: the job names modules that are the user's own: workers look where the driver's PYTHONPATH does.
    """
    env = {ROOT_VARIABLE: str(root())}
    env["OMP_NUM_THREADS"] = str(threads)
    env["PYTHONUNBUFFERED"] = "1"  # progress reaches the submitter's terminal as it is printed
    env |= dict.fromkeys(console.verbosity(), "1")
    python_path = _python_path(own_modules)
    if python_path:
        env["PYTHONPATH"] = python_path
    return env


def private_variables() -> dict[str, str]:
    """The driver's settings of MLflow, passwords among them, for the processes that talk to it.

    To be passed as an argument of a method or task, which puts it into `os.environ`; not to Ray's runtime
    environment, an actor's constructor, a closure or Ray Tune's configuration, which are stored.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(_PRIVATE_PREFIXES)}


def secrets_among(env_vars: Mapping[str, str]) -> list[str]:
    """The names of those variables that look like secrets: by name, or as a URL with a password or a token in it."""
    return [name for name, value in env_vars.items() if is_secret_name(name) or scrubbed(value) != value]


def _python_path(own_modules: bool) -> str:
    """Returns the PYTHONPATH by which workers find the driver's code.

    From Ray's working_dir: `platform` relative to it, because each node unpacks it under a folder of its own
    and starts its processes there. Otherwise, the driver's own entries, for a checkout that isn't installed, and for
    `own_modules`.
    """
    if unpacked_working_dir() is not None:
        return "platform"
    here = Path(__file__).resolve().parents[3]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return (
        os.pathsep.join(str(Path(entry).absolute()) for entry in entries if entry)
        if own_modules or str(here) in entries
        else ""
    )
