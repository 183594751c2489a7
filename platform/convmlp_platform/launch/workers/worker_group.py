"""The agents of a run: as many as fit, up to `launch.num_workers`; who is lost is replaced where there is room."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.launch.cluster_view import (
    AgentGone,
    Calls,
    Cluster,
    ClusterSilent,
    ClusterView,
    Room,
    Wish,
)
from convmlp_platform.launch.workers.placement import Home, choose_nodes, rank_order

# An agent that isn't up by then won't come up: its room was taken by someone else, or its node is ill.
START_AGENT_S = 180.0
_LOOK_S, _CLOSE_S, _WISH_PAUSE_S = 0.5, 3.0, 5.0
# Looking at thousands of nodes takes a while: it is done for this part of the time at most.
_LOOKING_SHARE = 0.05


@dataclass(eq=False)
class Member:
    """One agent. `home` is None until it is up."""

    node: str
    actor: Any
    coming: Any
    """The call for its home, then for its being warm."""
    since: float
    home: Home | None = None
    warm: bool = False


class WorkerGroup:
    """Nothing here waits: `refresh` takes note of what has happened and starts what can be started.

    Args:
        modules: what an agent's fork server imports.
        key: of the fork servers, which agents share with each other and with the driver; see `Agent`.
    """

    def __init__(
        self, job: TrainJob, use_gpu: bool, modules: list[str], cluster: Cluster, key: str | None = None
    ) -> None:
        self.launch, self.modules, self._cluster = job.launch, modules, cluster
        self.room = Room(job.launch.cpus_per_worker, int(use_gpu))
        self.members: list[Member] = []
        self.broken: str | None = None
        """The reason why agents can't start training processes here, once an agent has reported one; else None."""
        self.least = job.launch.least_workers
        self.fits = 0
        """How many workers the cluster has room for, those that are there included."""
        self._key = key or secrets.token_hex(8)  # another driver of this run may be of other code
        self._view: ClusterView | None = None
        self._look_after = 0.0
        self._wish: Wish | None = None
        self._wished, self._wish_after = 0, 0.0

    @property
    def ready(self) -> list[Member]:
        """The members that can start a process at once and will stay, in the order of ranks."""
        members = [member for member in self.staying if member.warm]
        homes = [member.home for member in members if member.home is not None]
        return [members[position] for position in rank_order(homes)]

    @property
    def staying(self) -> list[Member]:
        """The members on nodes that aren't about to be taken away."""
        leaving = self.cluster().deadlines
        return [member for member in self.members if member.node not in leaving]

    @property
    def coming(self) -> int:
        """Members on their way."""
        return sum(not member.warm for member in self.staying)

    def refresh(self) -> None:
        """Take note of who has come up or failed to, and start agents where there is room."""
        self._look_at([member for member in self.members if not member.warm])
        staying = self.staying
        missing = self.launch.num_workers - len(staying)
        self.fits = len(staying)
        if missing > 0:
            nodes = self._choose(missing, Counter(member.node for member in staying))
            self.fits += len(nodes)
            # Fewer than it takes are not started: they would hold what another job may be waiting for.
            if self.fits >= self.least:
                self.members += [self._start(node) for node in nodes]
                missing -= len(nodes)
        self._wish_for(missing)

    def drop(self, members: Collection[Member]) -> None:
        """End agents, with all that they have started; others take their places at the next `refresh`."""
        going = set(members)
        staying = [member for member in self.members if member not in going]
        for member in self.members:
            if member in going:
                self._cluster.end_agent(member.actor)
        self.members = staying

    def leave(self, nodes: Collection[str]) -> None:
        """End the agents on these nodes."""
        self.drop([member for member in self.members if member.node in nodes])

    def ping(self, timeout: float) -> None:
        """Drop the ready members that don't answer."""
        members, calls = self.ready, Calls(self._cluster)
        for member in members:
            calls.ask(member.actor, "free_port")
        answers = calls.answers(timeout)
        self.drop([member for member, port in zip(members, answers, strict=True) if port is None])

    def close(self) -> None:
        """End all agents."""
        calls = Calls(self._cluster)
        for member in self.members:
            if member.home is not None:
                calls.ask(member.actor, "close")
        calls.answers(_CLOSE_S)
        self.drop(self.members)
        self._wish_for(0)

    def cluster(self) -> ClusterView:
        """The cluster as it was at most a moment ago; while its head is silent, as it was last seen."""
        clock = self._cluster.clock
        now = clock.monotonic()
        if self._view is None or now > self._look_after:
            try:
                self._view = self._cluster.look()
            except ClusterSilent:
                self._view = self._view or ClusterView(frozenset(), {}, {})
            took = clock.monotonic() - now
            self._look_after = now + took + max(_LOOK_S, took / _LOOKING_SHARE)
        return self._view

    def answering(self, nodes: Collection[str]) -> set[str]:
        """Those of the nodes that really live; none while the cluster's head is silent."""
        try:
            return self._cluster.answering(nodes) if nodes else set()
        except ClusterSilent:
            return set()

    def _look_at(self, members: list[Member]) -> None:
        """Take note of what has become of members that are coming up."""
        done = set(self._cluster.done([member.coming for member in members], least=len(members)))
        now = self._cluster.clock.monotonic()
        late = [
            member for member in members if member.coming not in done and now - member.since > START_AGENT_S
        ]
        failed = [member for member in members if member.coming in done and not self._comes(member)]
        self.drop(late + failed)

    def _comes(self, member: Member) -> bool:
        """Take the next thing that an agent says on its way; whether it goes on."""
        try:
            answer = self._cluster.answer(member.coming)
        except AgentGone:
            return False
        if member.home is None:
            member.home, member.coming = answer, self._cluster.ask(member.actor, "warm")
        elif answer is None:
            member.warm = True
        else:
            self.broken = answer
            return False
        return True

    def _start(self, node: str) -> Member:
        actor = self._cluster.start_agent(node, self.room, (self.modules, f"{self._key}-{node}"))
        return Member(node, actor, self._cluster.ask(actor, "home"), self._cluster.clock.monotonic())

    def _choose(self, count: int, taken: Mapping[str, int]) -> list[str]:
        """Nodes that really live for up to `count` more workers; none while the cluster's head is silent.

        Ray lists a dead node for up to 15 seconds, and where workers are spread an empty one is the first choice:
        waiting for it would leave room on others unused. Then all others that have room are asked, at once.
        """
        room = {node: free for node, free in self._room().items() if free > 0}
        nodes = choose_nodes(room, taken, count, self.launch.placement)
        asked = set(nodes)
        try:
            living = self._cluster.answering(asked) if asked else asked
            if living == asked:
                return nodes
            living |= self._cluster.answering(room.keys() - asked)
        except ClusterSilent:
            return []
        return choose_nodes({node: room[node] for node in living}, taken, count, self.launch.placement)

    def _room(self) -> dict[str, int]:
        """Workers that each node could take now."""
        room = self.cluster().room(self.room.cpus, self.room.gpus)
        for member in self.members:  # asked for, and perhaps not yet taken
            if member.home is None and room.get(member.node):
                room[member.node] -= 1
        return room

    def _wish_for(self, count: int) -> None:
        """Ask Ray for room for `count` workers, so that an autoscaler makes it; the room is given back to be used."""
        now = self._cluster.clock.monotonic()
        if self._wish is not None and (count != self._wished or self._wish.granted()):
            self._wish.end()
            # Not again before it shows what is free now.
            self._wish, self._wish_after = None, now + _WISH_PAUSE_S
        elif self._wish is None and count > 0 and now > self._wish_after:
            self._wish = self._cluster.wish(count, self.room, self.launch.placement)
            self._wished = count
