"""Ray's private names that launching uses, each in one function. Nobody promises them: tests/.../launch/
test_ray_internals.py fails by name where an upgrade takes one away. Tried with Ray 2.60.0.

Ray is imported by the functions: its authentication is read from the environment when it is.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DEATHS = ("A worker died or was killed", "has been marked dead because", "Raylet is terminated")
TEMP_DIR_OPTION = "_temp_dir"
"""Argument of `ray.init`: the folder of a Ray of ours, for its sockets and logs. RAY_TMPDIR, the public way, stands for
the whole process and what it starts."""


def read_auth_again() -> None:
    """Let a Ray that is imported already read its authentication from the environment again."""
    if "ray" in sys.modules:
        raylet: Any = importlib.import_module("ray._raylet")
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def clusters_of_several_nodes(enabled: bool) -> Iterator[None]:
    """Within: whether a Ray that is started may have other nodes. Ray reads RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER when it
    is imported, which may have been before."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = enabled
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """Within: a Ray that is started may take so many seconds until its node is known. Ray itself gives up after 30 s,
    and has no setting for that."""
    services: Any = importlib.import_module("ray._private.services")
    deadline, asked = time.monotonic() + seconds, services.get_node

    def get_node(*arguments: Any) -> Any:
        while True:
            try:
                return asked(*arguments)
            except RuntimeError:  # not known yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = asked


@contextmanager
def quiet_deaths() -> Iterator[None]:
    """Within: Ray's paragraphs for each worker or node that dies aren't printed: the driver says what happened itself,
    in one line. Ray has no setting for that."""
    worker: Any = importlib.import_module("ray._private.worker")
    printed = getattr(worker, "print_to_stdstream", None)
    if printed is None:
        yield
        return

    def print_others(message: dict[str, Any], ignore_prefix: bool) -> None:
        if not any(death in line for line in message.get("lines", ()) for death in _DEATHS):
            printed(message, ignore_prefix)

    worker.print_to_stdstream = print_others
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


def draining_nodes() -> dict[str, float]:
    """Nodes that are being drained, by id, and the unix second at which each goes; infinity where that isn't said."""
    state: Any = importlib.import_module("ray._private.state")
    notices = state.state.get_draining_nodes()
    return {node: at / 1000 if at else math.inf for node, at in notices.items()}


def available_resources() -> dict[str, dict[str, float]]:
    """Of each node, by id, the resources that nobody holds."""
    state: Any = importlib.import_module("ray._private.state")
    return state.available_resources_per_node()


def orderly_deaths() -> set[Any]:
    """`DeathReason`s in `ray.nodes()`, names and numbers, of nodes that were shut down in an orderly way."""
    reasons: Any = importlib.import_module("ray.core.generated.common_pb2").NodeDeathInfo
    orderly = (
        reasons.EXPECTED_TERMINATION,
        reasons.AUTOSCALER_DRAIN_PREEMPTED,
        reasons.AUTOSCALER_DRAIN_IDLE,
    )
    return {reasons.Reason.Name(number) for number in orderly} | set(orderly)
