"""The agents of a run: as many as fit, up to `launch.num_workers`; who is lost is replaced where there is room."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.launch.cluster.cluster_view import ClusterView, answering, look
from convmlp_platform.launch.workers.agent import Agent
from convmlp_platform.launch.workers.placement import Home, choose_nodes, rank_order

# An agent that isn't up by then won't come up: its room was taken by someone else, or its node is ill.
START_AGENT_S = 180.0
# Calls of one agent that may wait at the same time: a watch, a kill, stacks, and some that nobody waits for any more.
_CONCURRENCY = 16
_LOOK_S, _CLOSE_S, _WISH_PAUSE_S = 0.5, 3.0, 5.0


@dataclass(eq=False)
class Member:
    """One agent. `home` is None until it is up."""

    node: str
    actor: Any
    coming: Any
    """Ref of its home, then of its being warm."""
    since: float
    home: Home | None = None
    warm: bool = False


class WorkerGroup:
    """Nothing here waits: `refresh` takes note of what has happened and starts what can be started.

    Args:
        modules: what an agent's fork server imports.
        key: of the fork servers, which agents share with each other and with the driver; see `Agent`.
    """

    def __init__(self, job: TrainJob, use_gpu: bool, modules: list[str], key: str | None = None) -> None:
        self.launch, self.use_gpu, self.modules = job.launch, use_gpu, modules
        self.members: list[Member] = []
        self.broken: str | None = None
        """The reason why agents can't start training processes here, once an agent has reported one; else None."""
        self.least = job.launch.least_workers
        self.fits = 0
        """How many workers the cluster has room for, those that are there included."""
        self._key = key or secrets.token_hex(8)  # another driver of this run may be of other code
        self._view: ClusterView | None = None
        self._wish: PlacementGroup | None = None
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
        for member in [member for member in self.members if not member.warm]:
            self._look_at(member)
        staying = self.staying
        missing = self.launch.num_workers - len(staying)
        self.fits = len(staying)
        if missing > 0:
            taken = Counter(member.node for member in staying)
            nodes = choose_nodes(self._room(), taken, missing, self.launch.placement)
            alive = answering(list(set(nodes)))
            nodes = [node for node in nodes if node in alive]
            self.fits += len(nodes)
            # Fewer than it takes are not started: they would hold what another job may be waiting for.
            if self.fits >= self.least:
                self.members += [self._start(node) for node in nodes]
                missing -= len(nodes)
        self._wish_for(missing)

    def drop(self, member: Member) -> None:
        """End an agent, with all that it has started; another takes its place at the next `refresh`."""
        if member in self.members:
            self.members.remove(member)
            ray.kill(member.actor)

    def leave(self, nodes: Collection[str]) -> None:
        """End the agents on these nodes."""
        for member in [member for member in self.members if member.node in nodes]:
            self.drop(member)

    def ping(self, timeout: float) -> None:
        """Drop the ready members that don't answer."""
        calls = {member.actor.free_port.remote(): member for member in self.ready}
        answered, _ = ray.wait(list(calls), num_returns=len(calls), timeout=timeout) if calls else ([], [])
        for call, member in calls.items():
            if call not in answered or failed(call):
                self.drop(member)

    def close(self) -> None:
        """End all agents."""
        calls = [member.actor.close.remote() for member in self.members if member.home is not None]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_S)
        for member in list(self.members):
            self.drop(member)
        self._wish_for(0)

    def _look_at(self, member: Member) -> None:
        done, _ = ray.wait([member.coming], timeout=0)
        if not done:
            if time.monotonic() - member.since > START_AGENT_S:
                self.drop(member)
            return
        try:
            answer = ray.get(member.coming)
        except ray.exceptions.RayError:
            self.drop(member)
            return
        if member.home is None:
            member.home, member.coming = answer, member.actor.warm.remote()
        elif answer is None:
            member.warm = True
        else:
            self.broken = answer
            self.drop(member)

    def _start(self, node: str) -> Member:
        actor = (
            ray.remote(Agent)
            .options(
                num_cpus=self.launch.cpus_per_worker,
                num_gpus=1 if self.use_gpu else 0,
                max_concurrency=_CONCURRENCY,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self.modules, f"{self._key}-{node}")
        )
        return Member(node, actor, actor.home.remote(), time.monotonic())

    def _room(self) -> dict[str, int]:
        """Workers that each node could take now."""
        room = self.cluster().room(self.launch.cpus_per_worker, int(self.use_gpu))
        for member in self.members:  # asked for, and perhaps not yet taken
            if member.home is None and room.get(member.node):
                room[member.node] -= 1
        return room

    def cluster(self) -> ClusterView:
        """The cluster as it was at most a moment ago."""
        if self._view is None or time.monotonic() - self._view.at > _LOOK_S:
            self._view = look()
        return self._view

    def _wish_for(self, count: int) -> None:
        """Ask Ray for room for `count` workers, so that an autoscaler makes it; the room is given back to be used."""
        now = time.monotonic()
        if self._wish is not None and (count != self._wished or self._wish.wait(0)):
            remove_placement_group(self._wish)
            # Not again before it shows what is free now.
            self._wish, self._wish_after = None, now + _WISH_PAUSE_S
        elif self._wish is None and count > 0 and now > self._wish_after:
            each = {"CPU": float(self.launch.cpus_per_worker)} | ({"GPU": 1.0} if self.use_gpu else {})
            strategy = self.launch.placement.removeprefix("STRICT_")
            self._wish, self._wished = placement_group([each] * count, strategy=strategy), count


def failed(call: Any) -> bool:
    """Whether a finished call has failed: its agent is gone."""
    try:
        ray.get(call)
    except ray.exceptions.RayError:
        return True
    return False
