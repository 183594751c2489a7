"""A connection to the Ray cluster a job names, or a local Ray for as long as the job lasts."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from convmlp_platform.errors import LaunchError
from convmlp_platform.launch.cluster import auth, ray_internals
from convmlp_platform.launch.cluster.worker_environment import secrets_among
from convmlp_platform.launch.workers.process_files import folder_for_ray
from data_prep import console

CONNECT_TIMEOUT_S = 5.0
START_VARIABLE = "CONVMLP_RAY_START_S"
"""Seconds that a Ray of ours may take to come up."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0 a Ray of one node listens on loopback only, whatever the system."""

# Read by Ray when it is imported, or by the processes it starts. What a user has set stays.
logger = logging.getLogger(__name__)

_DEFAULTS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a FutureWarning for each worker without a GPU
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a worker as in the driver
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",  # what tasks print is said for the job, not for a process of Ray's
    "RAY_DEDUP_LOGS": "0",  # after a restart a line like an earlier one isn't a duplicate
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_rpc_server_connect_timeout_s": "5",  # an address that isn't Ray's is refused in seconds
}
# The same, of a Ray of ours.
_OWN_DEFAULTS = {
    "RAY_worker_niceness": "0",  # at its default 15 training waits for all else on the machine
    "RAY_enable_metrics_collection": "0",  # no one scrapes it, and its agent warns about that
}


@contextmanager
def connect(address: str, env_vars: Mapping[str, str] | None = None) -> Iterator[str | None]:
    """Connect this process to Ray; yields the cluster's address, None for a local Ray that ends with the
    block.

    `address` is launch.address of a job. `env_vars` reach every process of this job on every node, unless
    `ray job submit --runtime-env-json` has set the same name. Raises LaunchError where no cluster answers.
    """
    target = resolve_address(address)
    logger.debug("launch.address %s is %s", address, target or "a Ray of this job's own")
    auth.apply(target)
    _tell_of_secrets()
    for name, value in (_DEFAULTS | (_OWN_DEFAULTS if target is None else {})).items():
        os.environ.setdefault(name, value)
    if target not in (None, "auto"):
        _probe(target)
    with contextlib.ExitStack() as ends:
        options = ends.enter_context(_own_ray()) if target is None else {}
        ends.enter_context(_initialised(target, env_vars or {}, options))
        yield target


@contextmanager
def _initialised(
    target: str | None, env_vars: Mapping[str, str], options: Mapping[str, Any]
) -> Iterator[None]:
    start_s = start_seconds()
    import ray

    try:
        with ray_internals.patient_start(start_s) if target is None else nullcontext():
            ray.init(
                address=target or "local",
                log_to_driver=True,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": _without_those_of_the_job(env_vars)},
                **options,
            )
    except Exception as error:  # of its own start's time-out Ray makes a plain Exception
        raise LaunchError(_explain(target, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_ray() -> Iterator[dict[str, Any]]:
    """Options of a Ray that this process starts: nothing of it is open to other machines or other users.

    Ray keeps its servers to loopback where it takes the machine for one without clusters (macOS, Windows); an address
    on loopback alone (`_node_ip_address`) it replaces. Its own folder below /tmp is open to all, sockets and objects
    in memory included: it gets one of ours, unless RAY_TMPDIR says where.
    """
    with contextlib.ExitStack() as ends:
        if LOOPBACK not in os.environ:
            ends.enter_context(_variable(LOOPBACK, "0"))
        ends.enter_context(ray_internals.clusters_of_several_nodes(os.environ[LOOPBACK] != "0"))
        options: dict[str, Any] = {"include_dashboard": False}
        if not os.environ.get("RAY_TMPDIR"):
            options[ray_internals.TEMP_DIR_OPTION] = str(ends.enter_context(folder_for_ray()))
        yield options


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


def resolve_address(address: str) -> str | None:
    """The address to connect to, None for a local Ray: launch.address, with auto read from RAY_ADDRESS."""
    if address == "local":
        return None
    target = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    if target in ("", "local"):
        return None
    if target.startswith(("http://", "https://")):
        raise LaunchError(
            f"{_origin(address)} is {target}, the address of Ray's job server: submit the job there with "
            f"`RAY_API_SERVER_ADDRESS={target} ray job submit ...`, "
            "or unset RAY_ADDRESS to run on this machine"
        )
    if target != "auto" and not target.rpartition(":")[2].isdigit():
        raise LaunchError(f"{_origin(address)} must be local, host:port or ray://host:port, not {target!r}")
    return target


def start_seconds() -> float:
    """Seconds that a Ray of ours may take to come up: CONVMLP_RAY_START_S, by default 90.

    Raises:
        LaunchError: it is no number.
    """
    text = os.environ.get(START_VARIABLE) or "90"
    try:
        return float(text)
    except ValueError:
        raise LaunchError(f"{START_VARIABLE} must be seconds, not {text!r}") from None


def _origin(address: str) -> str:
    return "RAY_ADDRESS" if address == "auto" else "launch.address"


def _probe(target: str) -> None:
    """Open and close a TCP connection: Ray would wait a minute for an address where nothing listens."""
    host, _, port = target.rsplit("//", 1)[-1].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise LaunchError(_explain(target, error)) from error


def _explain(target: str | None, error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0].rstrip(".") if lines else type(error).__name__
    if target is None:
        return (
            f"Ray can't be started on this machine: {reason}; on a slow or busy machine give it more time with "
            f"{START_VARIABLE} (={start_seconds():g}, seconds), or start it yourself (`ray start --head`) and set "
            "RAY_ADDRESS; without Ray: --no-ray"
        )
    if "authenticat" in str(error).lower():
        return (
            f"the Ray cluster at {target} refuses our token: {reason}; "
            f"export {auth.MODE}=token and {auth.TOKEN}=... as they are on its head node"
        )
    return (
        f"no Ray cluster can be reached at {target}: {reason}; "
        f"is it running (`ray status --address {target}`)? "
        "Check launch.address and RAY_ADDRESS, or run on this machine: --set launch.address=local"
    )


def _submitted() -> dict[str, str]:
    """The variables of `ray job submit --runtime-env-json`."""
    config = json.loads(os.environ.get(auth.JOB_MARKER) or "{}")
    return (config.get("runtime_env") or {}).get("env_vars") or {}


def _tell_of_secrets() -> None:
    for name in secrets_among(_submitted()):
        console.say(
            f"{name} came with `ray job submit --runtime-env-json`, which Ray writes in clear into its logs: take it "
            "for known, and set it where Ray is started instead (docs/operations.md)"
        )


def _without_those_of_the_job(env_vars: Mapping[str, str]) -> dict[str, str]:
    """Ray refuses a variable that both the job's runtime environment and the driver set."""
    submitted = _submitted()
    return {name: value for name, value in env_vars.items() if name not in submitted}
