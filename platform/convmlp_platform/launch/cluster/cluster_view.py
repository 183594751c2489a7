"""A view of Ray's nodes at one moment: the nodes that live, their free resources, the nodes that will leave soon."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray

from convmlp_platform.launch.cluster import ray_internals

_ANSWER_S, _CONNECT_S = 30.0, 1.0

T = TypeVar("T")


@dataclass(frozen=True)
class ClusterView:
    """Nodes by Ray's ids.

    Args:
        alive: nodes that live.
        available: of each, the resources nobody holds.
        deadlines: of nodes that are being drained (`ray drain-node`, a cloud's notice through the autoscaler): unix
            seconds at which they go, infinity where that isn't said.
    """

    alive: frozenset[str]
    available: dict[str, dict[str, float]]
    deadlines: dict[str, float]
    at: float = field(default_factory=time.monotonic)

    @property
    def leaving(self) -> dict[str, float]:
        """Node → seconds it has left."""
        return {node: deadline - time.time() for node, deadline in self.deadlines.items()}

    def room(self, cpus: int, gpus: int) -> dict[str, int]:
        """Node → workers with so many CPUs and GPUs each that fit now; none on a node that is leaving."""
        found = {}
        for node in self.alive - self.deadlines.keys():
            free = self.available.get(node, {})
            found[node] = int(free.get("CPU", 0)) // cpus
            if gpus:
                found[node] = min(found[node], int(free.get("GPU", 0)) // gpus)
        return found


def look() -> ClusterView:
    """The connected cluster now, as Ray knows it: a dead node is in it for up to 15 seconds (`answering` knows
    better)."""
    return _within_cluster(_look)


def answering(nodes: Sequence[str]) -> set[str]:
    """Those of the nodes that really live: something listens where their raylets do."""
    return _within_cluster(_answering, list(nodes))


def taken_away(node: str) -> bool:
    """Whether a node that is gone was shut down in an orderly way: a pod deleted, a machine taken back."""
    return _within_cluster(_taken_away, node)


def _within_cluster(function: Callable[..., T], *arguments: object) -> T:
    if not ray.util.client.ray.is_connected():
        return function(*arguments)
    # launch.address: ray://... The driver is no part of the cluster then.
    found: T = ray.get(ray.remote(num_cpus=0)(function).remote(*arguments), timeout=_ANSWER_S)
    return found


def _answering(nodes: list[str]) -> set[str]:
    known = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    return {node for node in nodes if node in known and _listens(known[node])}


def _taken_away(node: str) -> bool:
    orderly = ray_internals.orderly_deaths()
    return any(one["NodeID"] == node and one.get("DeathReason") in orderly for one in ray.nodes())


def _listens(node: dict[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), _CONNECT_S).close()
    except OSError:
        return False
    return True


def _look() -> ClusterView:
    alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
    deadlines = {node: at for node, at in ray_internals.draining_nodes().items() if node in alive}
    return ClusterView(alive, ray_internals.available_resources(), deadlines)


def own_node() -> str:
    """Returns the id of the node that this process is connected through."""
    node: str = ray.get_runtime_context().get_node_id()
    return node
