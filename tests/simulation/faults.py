"""Faults of large clusters: how often each kind comes, and what it does to a simulated one.

A published run of 54 days on 16,384 GPUs in 2,048 nodes was interrupted 419 times unexpectedly, once in three hours, by
devices, hosts, networks, storage and processes that died or hung. `PUBLISHED` spreads such a rate over our kinds.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping

from simulated_cluster import SimulatedAgent, SimulatedCluster, SimulatedNode

PUBLISHED_PER_NODE_HOUR = 1 / (3.0 * 2048)
PUBLISHED: Mapping[str, float] = {
    "process killed": 0.30,
    "device error": 0.22,
    "node dies": 0.20,
    "hang": 0.10,
    "agent killed": 0.06,
    "node cut off": 0.05,
    "slow messages": 0.03,
    "straggler": 0.04,
}
"""Shares of the faults that come to single nodes."""
CLUSTER_FAULTS = (
    "spot wave", "nodes shut down", "head down", "driver killed", "driver stopped", "storage out", "network splits",
)  # fmt: skip


class Faults:
    """Faults that come at random, each kind as often as `per_hour` says, from a seed.

    Args:
        per_hour: kind → how many come to the whole cluster in an hour.
        stop_driver: what a signal to the driver does.
        repaired_s: between these seconds a node that is gone is replaced.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        rng: random.Random,
        per_hour: Mapping[str, float],
        stop_driver: Callable[[], None],
        repaired_s: tuple[float, float],
    ) -> None:
        self.cluster, self.rng, self.per_hour = cluster, rng, {k: v for k, v in per_hour.items() if v > 0}
        self.stop_driver, self.repaired_s = stop_driver, repaired_s
        self.injected: Counter[str] = Counter()
        self.trace: list[str] = []
        self.over = False
        self.last = 0.0
        self._joined = 0
        for kind in self.per_hour:
            self._plan(kind)

    def _plan(self, kind: str) -> None:
        wait = self.rng.expovariate(self.per_hour[kind] / 3600.0)
        self.cluster.time.after(wait, lambda: self._come(kind))

    def _come(self, kind: str) -> None:
        if self.over:
            return
        self._plan(kind)
        act = getattr(self, "_" + kind.replace(" ", "_"))
        said = act()
        if said is not None:
            self._changed()
            self.injected[kind] += 1
            self.trace.append(f"{self.cluster.time.now:.3f} {kind} {said}")

    def _changed(self) -> None:
        self.last = self.cluster.time.now

    def _agent(self) -> SimulatedAgent | None:
        """One with a process that lives, on a node that answers."""
        agents = [
            a for a in self.cluster.agents if a.alive and a.process and a.process.lives and a.node.answers
        ]
        return self.rng.choice(agents) if agents else None

    def _node(self) -> SimulatedNode | None:
        nodes = [node for node in self.cluster.nodes.values() if node.answers]
        return self.rng.choice(nodes) if nodes else None

    def _later(self, seconds: float, then: Callable[[], object]) -> None:
        def act() -> None:
            self._changed()
            then()

        self.cluster.time.after(seconds, act)

    def _settles(self, seconds: float, then: Callable[[], object]) -> None:
        """Something goes on until then."""
        self.cluster.unsettled += 1

        def act() -> None:
            self.cluster.unsettled -= 1
            then()

        self._later(seconds, act)

    def _replace(self, node: SimulatedNode) -> None:
        self._joined += 1
        name = f"node-new-{self._joined:05d}"
        self._later(self.rng.uniform(*self.repaired_s), lambda: self.cluster.node_comes(name, node.slots))

    # -- of a node or a process ----------------------------------------------------------------------------------------

    def _process_killed(self) -> str | None:
        agent = self._agent()
        if agent is None or agent.training is None or agent.process is None:
            return None
        agent.training.kill(agent.process, prompt=self.rng.random() < 0.7)
        return agent.node.name

    def _device_error(self) -> str | None:
        agent = self._agent()
        if agent is None or agent.training is None or agent.process is None:
            return None
        agent.training.raise_in(
            agent.process.rank, "RuntimeError: CUDA error: uncorrectable ECC error", "hardware"
        )
        return agent.node.name

    def _node_dies(self) -> str | None:
        node = self._node()
        if node is None:
            return None
        self.cluster.node_dies(node)
        self._replace(node)
        return node.name

    def _hang(self) -> str | None:
        agent = self._agent()
        if agent is None or agent.training is None or agent.process is None or not agent.training.is_running:
            return None
        agent.training.hang(agent.process.rank)
        return agent.node.name

    def _agent_killed(self) -> str | None:
        agent = self._agent()
        if agent is None:
            return None
        self.cluster.agent_dies(agent)
        return agent.node.name

    def _node_cut_off(self) -> str | None:
        node = self._node()
        return None if node is None else self._cut([node])

    def _network_splits(self) -> str | None:
        """A rack, or a switch's worth of nodes."""
        nodes = [node for node in self.cluster.nodes.values() if node.answers]
        return self._cut(self.rng.sample(nodes, max(2, len(nodes) // 16))) if len(nodes) > 16 else None

    def _cut(self, nodes: list[SimulatedNode]) -> str:
        seconds = self.rng.choice([8.0, 25.0, 90.0, 400.0])
        for node in nodes:
            self.cluster.cut_off(node)
        self._settles(seconds, lambda: self._heal(nodes))
        return f"{len(nodes)} for {seconds:g} s, {nodes[0].name}"

    def _heal(self, nodes: list[SimulatedNode]) -> None:
        for node in nodes:
            self.cluster.reach_again(node)
            if not node.alive:
                self._replace(node)

    def _slow_messages(self) -> str | None:
        node = self._node()
        if node is None:
            return None
        node.late = self.rng.choice([1.0, 6.0, 15.0, 40.0])
        self._settles(self.rng.uniform(20.0, 240.0), lambda: setattr(node, "late", 0.0))
        return f"{node.name} {node.late:g} s"

    def _straggler(self) -> str | None:
        node = self._node()
        if node is None:
            return None
        node.slow = self.rng.choice([1.3, 1.8, 3.0])
        self._pace()
        self._later(self.rng.uniform(120.0, 900.0), lambda: self._well(node))
        return f"{node.name} x{node.slow:g}"

    def _well(self, node: SimulatedNode) -> None:
        node.slow = 1.0
        self._pace()

    def _pace(self) -> None:
        """Each training is as slow as its slowest rank."""
        for training in self.cluster.trainings.values():
            mine = [
                agent.node.slow for agent in self.cluster.agents if agent.alive and agent.training is training
            ]
            training.slow_down(max(mine, default=1.0))

    # -- of the cluster ------------------------------------------------------------------------------------------------

    def _spot_wave(self) -> str | None:
        nodes = [node for node in self.cluster.nodes.values() if node.answers and node.deadline is None]
        taken = (
            self.rng.sample(nodes, max(1, int(len(nodes) * self.rng.uniform(0.02, 0.25)))) if nodes else []
        )
        left = self.rng.choice([25.0, 30.0, 60.0, 120.0])
        for node in taken:
            node.deadline = self.cluster.time.now + left
        self._settles(left, lambda: [self._take(node) for node in taken])
        return f"{len(taken)} nodes in {left:g} s"

    def _take(self, node: SimulatedNode) -> None:
        if node.alive:
            self.cluster.node_dies(node, orderly=True)
            self._replace(node)

    def _nodes_shut_down(self) -> str | None:
        nodes = [node for node in self.cluster.nodes.values() if node.answers]
        taken = self.rng.sample(nodes, self.rng.randint(1, max(1, len(nodes) // 20))) if nodes else []
        for node in taken:
            self._take(node)
        return f"{len(taken)} nodes"

    def _head_down(self) -> str:
        seconds = self.rng.choice([5.0, 30.0, 120.0, 600.0])
        self.cluster.head_back = self.cluster.time.now + seconds
        self._settles(seconds, lambda: None)
        return f"{seconds:g} s"

    def _driver_killed(self) -> str:
        self.cluster.driver_dies()
        return ""

    def _driver_stopped(self) -> str:
        self.stop_driver()
        return ""

    def _storage_out(self) -> str:
        seconds = self.rng.choice([10.0, 60.0, 200.0, 500.0])
        now = self.cluster.time.now
        self.cluster.storage.outages = [one for one in self.cluster.storage.outages if one[1] > now - 3600.0]
        self.cluster.storage.outages.append((now, now + seconds))
        for training in self.cluster.trainings.values():
            training.replan()
        self._later(seconds, lambda: None)
        return f"{seconds:g} s"
