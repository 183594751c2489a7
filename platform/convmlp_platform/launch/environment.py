"""What of the driver's surroundings must be the same in every process of a job, on every node."""

from __future__ import annotations

import os
from pathlib import Path

from convmlp_platform.config.paths import ROOT_VARIABLE, root
from convmlp_platform.launch.working_dir import unpacked_working_dir

# Where the tracking server is and how to log in; of its options what a user has set.
_FORWARDED_PREFIXES = ("MLFLOW_",)


def shared_env_vars(threads: int) -> dict[str, str]:
    """Variables for all processes of the job: where paths start, MLflow's settings, `threads` for OpenMP,
    code.

    Workers are started by the cluster's nodes and inherit those nodes' environment, not the driver's.
    """
    env = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED_PREFIXES)}
    env[ROOT_VARIABLE] = str(root())
    env["OMP_NUM_THREADS"] = str(threads)
    env["PYTHONUNBUFFERED"] = "1"  # progress reaches the submitter's terminal as it is printed
    python_path = _python_path()
    if python_path:
        env["PYTHONPATH"] = python_path
    return env


def _python_path() -> str:
    """Where workers find the driver's code.

    From Ray's working_dir: `platform` relative to it, because each node unpacks it under a folder of its own
    and starts its processes there. Otherwise, the driver's own entries, for a checkout that isn't installed.
    """
    if unpacked_working_dir() is not None:
        return "platform"
    here = Path(__file__).resolve().parents[2]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return (
        os.pathsep.join(str(Path(entry).absolute()) for entry in entries if entry)
        if str(here) in entries
        else ""
    )
