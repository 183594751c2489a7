"""The cluster and the clock as supervision sees them: all that it asks of either.

`cluster.ray_cluster.RayCluster` is the one of a job. tests/simulation/ has another, of simulated nodes in virtual time,
under the same supervisor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Clock:
    """Time: `monotonic` and `unix` in seconds, and `sleep`."""

    monotonic: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class ClusterView:
    """Nodes by Ray's ids, at one moment.

    Args:
        alive: nodes that live. A dead one is among them for up to 15 seconds; `Cluster.answering` knows better.
        available: of each, the resources nobody holds.
        deadlines: of nodes that are being drained (`ray drain-node`, a cloud's notice through the autoscaler): unix
            seconds at which they go, infinity where that isn't said.
    """

    alive: frozenset[str]
    available: dict[str, dict[str, float]]
    deadlines: dict[str, float]

    def leaving(self, now: float) -> dict[str, float]:
        """Node → seconds it has left at `now`, in unix seconds."""
        return {node: deadline - now for node, deadline in self.deadlines.items()}

    def room(self, cpus: int, gpus: int) -> dict[str, int]:
        """Node → workers with so many CPUs and GPUs each that fit now; none on a node that is leaving."""
        found = {}
        for node in self.alive - self.deadlines.keys():
            free = self.available.get(node, {})
            found[node] = int(free.get("CPU", 0)) // cpus
            if gpus:
                found[node] = min(found[node], int(free.get("GPU", 0)) // gpus)
        return found


class AgentGone(Exception):
    """An agent won't answer: it has ended, or its node has."""


class ClusterSilent(Exception):
    """The cluster's head doesn't answer. It may come back; agents and what they run go on without it."""


@dataclass(frozen=True)
class Room:
    """Room for one worker."""

    cpus: int
    gpus: int = 0


class Wish(Protocol):
    """Room that the cluster has been asked for, so that an autoscaler makes it."""

    def granted(self) -> bool:
        """Whether it is there, and held."""
        ...

    def end(self) -> None:
        """Give it back, to be used."""
        ...


class Cluster(Protocol):
    """A cluster of nodes, and the agents that a driver starts on them.

    Agents and calls are the cluster's own objects, calls hashable. Nothing waits but `done`, which says so, and, for a
    second or two, the questions about nodes.
    """

    clock: Clock

    def look(self) -> ClusterView:
        """The nodes now.

        Raises:
            ClusterSilent: the head doesn't answer.
        """
        ...

    def answering(self, nodes: Collection[str]) -> set[str]:
        """Those of the nodes that really live: something listens where their raylets do. All are asked at once.

        Raises:
            ClusterSilent: the head doesn't answer.
        """
        ...

    def taken_away(self, nodes: Collection[str]) -> set[str]:
        """Those of nodes that are gone which were shut down in an orderly way: a pod deleted, a machine taken back.

        Raises:
            ClusterSilent: the head doesn't answer.
        """
        ...

    def start_agent(self, node: str, room: Room, arguments: Sequence[Any]) -> Any:
        """Start an agent (`workers.agent.Agent` of these arguments) on this node and no other; returns it at once."""
        ...

    def end_agent(self, agent: Any) -> None:
        """End an agent, with all that it has started, now or once it is up."""
        ...

    def ask(self, agent: Any, method: str, *arguments: Any) -> Any:
        """Call a method of an agent; returns the call."""
        ...

    def done(self, calls: Sequence[Any], *, least: int = 1, timeout: float = 0.0) -> list[Any]:
        """Those of the calls that are answered, or never will be, once they are `least` or `timeout` seconds later."""
        ...

    def answer(self, call: Any) -> Any:
        """The answer of a call that is done.

        Raises:
            AgentGone: there is none.
        """
        ...

    def wish(self, count: int, room: Room, placement: str) -> Wish:
        """Ask for room for `count` workers; `placement` as in `launch.placement`."""
        ...


@dataclass
class Calls:
    """Calls to agents that are asked at the same time, and what becomes of them within one time limit."""

    cluster: Cluster
    calls: list[Any] = field(default_factory=list)

    def ask(self, agent: Any, method: str, *arguments: Any) -> None:
        """Add a call."""
        self.calls.append(self.cluster.ask(agent, method, *arguments))

    def answers(self, timeout: float) -> list[Any]:
        """The answers in the order of the calls, after `timeout` seconds at most for all together; None of an agent
        that is gone or hasn't answered by then."""
        done = set(self.cluster.done(self.calls, least=len(self.calls), timeout=timeout))
        return [answer_or_none(self.cluster, call) if call in done else None for call in self.calls]


def answer_or_none(cluster: Cluster, call: Any) -> Any:
    """The answer of a call that is done; None of an agent that is gone."""
    try:
        return cluster.answer(call)
    except AgentGone:
        return None
