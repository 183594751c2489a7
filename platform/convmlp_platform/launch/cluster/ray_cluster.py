"""The connected Ray cluster, as supervision sees it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import selectors
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from convmlp_platform.launch.cluster import ray_internals
from convmlp_platform.launch.cluster_view import AgentGone, Clock, ClusterSilent, ClusterView, Room
from convmlp_platform.launch.workers.agent import Agent

_ANSWER_S, _CONNECT_S = 30.0, 1.0
# Sockets that are open at the same time: a process may often have no more than 1,024 files.
_AT_ONCE = 256
# Calls of one agent that may wait at the same time: a watch, a kill, stacks, and some that nobody waits for any more.
_CONCURRENCY = 16

T = TypeVar("T")


class RayCluster:
    """See `launch.cluster_view.Cluster`."""

    def __init__(self) -> None:
        self.clock = Clock()

    def own_node(self) -> str | None:
        """Returns the id of the node that this process is on; None where it is outside of the cluster."""
        if ray.util.client.ray.is_connected():
            return None
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def look(self) -> ClusterView:
        """See Cluster."""
        return _within_cluster(_look)

    def answering(self, nodes: Collection[str]) -> set[str]:
        """See Cluster."""
        return _within_cluster(_answering, list(nodes)) if nodes else set()

    def taken_away(self, nodes: Collection[str]) -> set[str]:
        """See Cluster."""
        return _within_cluster(_taken_away, list(nodes)) if nodes else set()

    def start_agent(self, node: str, room: Room, arguments: Sequence[Any]) -> Any:
        """See Cluster."""
        return (
            ray.remote(Agent)
            .options(
                num_cpus=room.cpus,
                num_gpus=room.gpus,
                max_concurrency=_CONCURRENCY,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(*arguments)
        )

    def end_agent(self, agent: Any) -> None:
        """See Cluster."""
        ray.kill(agent)

    def ask(self, agent: Any, method: str, *arguments: Any) -> Any:
        """See Cluster."""
        return getattr(agent, method).remote(*arguments)

    def done(self, calls: Sequence[Any], *, least: int = 1, timeout: float = 0.0) -> list[Any]:
        """See Cluster."""
        if not calls:
            return []
        found, rest = ray.wait(list(calls), num_returns=max(1, min(least, len(calls))), timeout=timeout)
        if rest and len(found) >= least:  # Ray tells no more than it was asked for
            found += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return list(found)

    def answer(self, call: Any) -> Any:
        """See Cluster."""
        try:
            return ray.get(call)
        except ray.exceptions.RayError as error:
            raise AgentGone(str(error)) from error

    def wish(self, count: int, room: Room, placement: str) -> RayWish:
        """See Cluster."""
        each = {"CPU": float(room.cpus)} | ({"GPU": float(room.gpus)} if room.gpus else {})
        return RayWish(placement_group([each] * count, strategy=placement.removeprefix("STRICT_")))


class RayWish:
    """See `launch.cluster_view.Wish`."""

    def __init__(self, group: PlacementGroup) -> None:
        self._group = group

    def granted(self) -> bool:
        """See Wish."""
        return bool(self._group.wait(0))

    def end(self) -> None:
        """See Wish."""
        remove_placement_group(self._group)


def _within_cluster(function: Callable[..., T], *arguments: object) -> T:
    try:
        if not ray.util.client.ray.is_connected():
            return function(*arguments)
        # launch.address: ray://... The driver is no part of the cluster then.
        found: T = ray.get(ray.remote(num_cpus=0)(function).remote(*arguments), timeout=_ANSWER_S)
        return found
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise ClusterSilent(str(error)) from error


def _answering(nodes: list[str]) -> set[str]:
    known = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    addresses = {
        node: (str(known[node]["NodeManagerAddress"]), int(known[node]["NodeManagerPort"]))
        for node in nodes
        if node in known
    }
    return listening(addresses)


def listening(addresses: Mapping[str, tuple[str, int]]) -> set[str]:
    """The names of those addresses (an IP or a host's name, and a port) at which something accepts a connection within
    a second. They are asked at the same time, 256 together."""
    waiting, found = iter(addresses.items()), set[str]()
    with contextlib.closing(selectors.DefaultSelector()) as selector:
        _connect(selector, waiting, found)
        while opened := selector.get_map():
            ready = {key.fd for key, _ in selector.select(0.05)}
            now = time.monotonic()
            for key in list(opened.values()):
                name, deadline = key.data
                if key.fd in ready or now > deadline:
                    selector.unregister(key.fileobj)
                    with key.fileobj as one:  # type: ignore[union-attr]
                        if key.fd in ready and not one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                            found.add(name)
            _connect(selector, waiting, found)
    return found


def _connect(
    selector: selectors.BaseSelector, waiting: Iterator[tuple[str, tuple[str, int]]], found: set[str]
) -> None:
    """Begin as many connections as there may be at the same time."""
    while len(selector.get_map()) < _AT_ONCE:
        name, (host, port) = next(waiting, ("", ("", 0)))
        if not host:
            return
        one = socket.socket(_family(host))
        one.setblocking(False)
        try:
            code = one.connect_ex((host, port))
        except OSError:  # a host's name that nobody knows
            code = errno.EHOSTUNREACH
        if code == errno.EINPROGRESS:
            selector.register(one, selectors.EVENT_WRITE, (name, time.monotonic() + _CONNECT_S))
            continue
        one.close()
        if code == 0:
            found.add(name)


def _family(host: str) -> socket.AddressFamily:
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).version == 6:
            return socket.AF_INET6
    return socket.AF_INET


def _taken_away(nodes: list[str]) -> set[str]:
    orderly, asked = ray_internals.orderly_deaths(), set(nodes)
    return {
        node["NodeID"]
        for node in ray.nodes()
        if node["NodeID"] in asked and node.get("DeathReason") in orderly
    }


def _look() -> ClusterView:
    alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
    deadlines = {node: at for node, at in ray_internals.draining_nodes().items() if node in alive}
    return ClusterView(alive, ray_internals.available_resources(), deadlines)
