"""Nodes and agents in virtual time, as `launch.cluster_view.Cluster`: what a supervisor gets in place of Ray.

An agent's messages take a moment, a node that died is listed for a while, one that is cut off says nothing and goes on,
and a head that is down answers nobody. Times are like those of Ray 2.60 (docs/decisions/0010).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulated_training import Recipe, SimulatedProcess, SimulatedTraining, Storage
from virtual_time import EPOCH, VirtualTime

from convmlp_platform.launch.cluster_view import AgentGone, ClusterSilent, ClusterView, Room
from convmlp_platform.launch.workers.placement import Home
from convmlp_platform.launch.workers.worker_report import Report

LISTED_S = 15.0
"""So long a node that died is in the cluster's list."""
REJOINS_S = 30.0
"""A node that was cut off for longer is none of the cluster any more: its agents end."""
_MESSAGE_S, _ENDS_S, _SILENT_S = 0.01, 0.3, 20.0
_ON_ITS_WAY_S = 90.0
"""To a node whose messages are late a kill may take so long; the processes of its attempt are broken meanwhile."""
_CALM_S, _LONGEST_LEAP_S = 6.0, 3600.0
NEVER = float("inf")


class DriverKilled(BaseException):
    """The driver is dead: nothing that it tries has any effect."""


class Violation(AssertionError):
    """Something happened that must not."""


class SimulatedCall:
    """A call of an agent's method. `due`: when it is answered; until `ready`, the answer of a watch is made then."""

    __slots__ = ("agent", "due", "gone", "ready", "value")

    def __init__(self, agent: SimulatedAgent) -> None:
        self.agent, self.due, self.ready, self.gone, self.value = agent, NEVER, False, False, None


@dataclass(eq=False)
class SimulatedNode:
    """One machine. `slow`: how many times as long its work takes. `late`: seconds that its messages take."""

    name: str
    slots: int
    alive: bool = True
    reachable: bool = True
    listed: bool = True
    orderly: bool = False
    deadline: float | None = None
    slow: float = 1.0
    late: float = 0.0
    cut_at: float = 0.0
    used: int = 0
    agents: list[SimulatedAgent] = field(default_factory=list)
    held: list[Callable[[], None]] = field(default_factory=list)
    """Messages that wait for the node to be reachable."""

    @property
    def answers(self) -> bool:
        return self.alive and self.reachable


@dataclass(eq=False)
class SimulatedAgent:
    """See `launch.workers.agent.Agent`, whose methods it answers."""

    number: int
    node: SimulatedNode
    alive: bool = True
    up: bool = False
    warm: bool = False
    ended: bool = False
    ended_at: float = 0.0
    """The driver has said so, though perhaps nobody has heard it yet."""
    training: SimulatedTraining | None = None
    process: SimulatedProcess | None = None
    pending: list[SimulatedCall] = field(default_factory=list)
    watch: SimulatedCall | None = None
    waiting: dict[str, SimulatedCall] = field(default_factory=dict)


@dataclass
class SimulatedWish:
    """See `launch.cluster_view.Wish`."""

    cluster: SimulatedCluster
    count: int

    def granted(self) -> bool:
        return self.cluster.free() >= self.count

    def end(self) -> None:
        pass


class SimulatedCluster:
    """See `launch.cluster_view.Cluster`. `faults.py` does things to it."""

    def __init__(self, nodes: int, recipe: Recipe, rng: random.Random, slots: int = 1) -> None:
        self.time, self.recipe, self.rng = VirtualTime(), recipe, rng
        self.clock = self.time.clock
        self.storage = Storage()
        self.nodes = {name: SimulatedNode(name, slots) for name in (f"node-{n:05d}" for n in range(nodes))}
        self.agents: list[SimulatedAgent] = []
        self.trainings: dict[int, SimulatedTraining] = {}
        self.head_back = self.joined = 0.0
        self.driver_dead = False
        self.unsettled = 0
        """Faults that are going on."""
        self.looks = self.reports = self.orphans = self.started = 0
        self.on_start: Callable[[SimulatedTraining], None] = lambda _: None

    # -- what supervision asks -----------------------------------------------------------------------------------------

    def look(self) -> ClusterView:
        self._ask_head()
        listed = [node for node in self.nodes.values() if node.listed]
        free = {node.name: {"CPU": float(node.slots - node.used)} for node in listed}
        leaving = {node.name: EPOCH + node.deadline for node in listed if node.deadline is not None}
        return ClusterView(frozenset(free), free, leaving)

    def answering(self, nodes: Collection[str]) -> set[str]:
        self._ask_head()
        found = {name for name in nodes if name in self.nodes and self.nodes[name].answers}
        self._pass(0.02 if len(found) == len(nodes) else 1.0)
        return found

    def taken_away(self, nodes: Collection[str]) -> set[str]:
        self._ask_head()
        return {name for name in nodes if name in self.nodes and self.nodes[name].orderly}

    def start_agent(self, node: str, room: Room, modules: Sequence[str]) -> SimulatedAgent:
        agent = SimulatedAgent(self.started, self.nodes[node])
        self.started += 1
        self.agents.append(agent)
        self._to_head(lambda: self._deliver(agent.node, lambda: self._begin(agent), agent))
        return agent

    def end_agent(self, agent: SimulatedAgent) -> None:
        agent.ended, agent.ended_at = True, self.time.now
        self._to_head(lambda: self._deliver(agent.node, lambda: self._end(agent)))

    def ask(self, agent: SimulatedAgent, method: str, *arguments: Any) -> SimulatedCall:
        call = SimulatedCall(agent)
        if not agent.alive:
            self.time.after(_MESSAGE_S, lambda: self._gone(call))
        elif method == "watch" and agent.node.answers and agent.up:
            self._watch(agent, call, arguments[0])
        else:
            agent.pending.append(call)
            self._deliver(agent.node, lambda: self._called(agent, call, method, arguments))
        return call

    def done(
        self, calls: Sequence[SimulatedCall], *, least: int = 1, timeout: float = 0.0
    ) -> list[SimulatedCall]:
        self._alive()
        time = self.time
        deadline = time.now + timeout
        if timeout and least == 1 and (leap := self._leap()) > deadline:
            self._pass(leap - time.now)
            deadline = time.now
        least = min(least, len(calls))
        while True:
            now = time.now
            found = [call for call in calls if call.ready or call.due <= now]
            if len(found) >= least or now >= deadline:
                self.looks += 1
                return found
            due = min((call.due for call in calls if call.due > now), default=NEVER)
            self._pass(max(0.0, min(deadline, due, time.next) - now))

    def answer(self, call: SimulatedCall) -> Any:
        if call.gone:
            raise AgentGone("its agent is gone")
        if not call.ready:  # a watch that is due
            call.ready, call.value = True, self._report(call.agent)
            self.reports += 1
        return call.value

    def wish(self, count: int, room: Room, placement: str) -> SimulatedWish:
        return SimulatedWish(self, count)

    # -- time ----------------------------------------------------------------------------------------------------------

    def _alive(self) -> None:
        if self.driver_dead:
            raise DriverKilled

    def _pass(self, seconds: float) -> None:
        self.time.pass_(seconds)
        self._alive()

    def _ask_head(self) -> None:
        self._alive()
        self._pass(0.01)
        if self.head_back > self.time.now:
            wait = self.head_back - self.time.now
            self._pass(min(wait, _SILENT_S))
            if wait > _SILENT_S:
                raise ClusterSilent("the head doesn't answer")

    def _leap(self) -> float:
        """Up to when nothing can happen of which the supervisor would hear: every agent would say what it said before.
        0: something may."""
        calm = (
            not self.unsettled
            and self.time.now - self.time.happened > _CALM_S
            and self.time.next - self.time.now > 3.0
            and any(training.is_running or training.starts for training in self.trainings.values())
            and not any(agent.alive and not agent.ended and not agent.warm for agent in self.agents)
        )
        return min(self.time.next - 1.0, self.time.now + _LONGEST_LEAP_S) if calm else 0.0

    # -- messages ------------------------------------------------------------------------------------------------------

    def _to_head(self, message: Callable[[], None]) -> None:
        self.time.at(max(self.head_back, self.time.now + _MESSAGE_S), message)

    def _deliver(
        self, node: SimulatedNode, message: Callable[[], None], lost: SimulatedAgent | None = None
    ) -> None:
        """Bring a message to a node once it can be reached."""

        def arrive() -> None:
            if node.answers:
                message()
            elif node.alive:
                node.held.append(message)
            elif lost is not None:
                self._die(lost)

        self.time.after(_MESSAGE_S + node.late, arrive)

    def _called(
        self, agent: SimulatedAgent, call: SimulatedCall, method: str, arguments: tuple[Any, ...]
    ) -> None:
        if not agent.alive:
            self._gone(call)
            return
        if not agent.up or (method == "warm" and not agent.warm):
            agent.waiting[f"{method} {id(call)}"] = call
            return
        if method == "watch":
            agent.pending.remove(call)
            self._watch(agent, call, arguments[0])
            return
        self._reply(agent, call, getattr(self, f"_do_{method}")(agent, *arguments))

    def _reply(self, agent: SimulatedAgent, call: SimulatedCall, value: Any) -> None:
        def arrive() -> None:
            if call in agent.pending:
                agent.pending.remove(call)
                call.ready, call.value, call.due = True, value, self.time.now

        if agent.node.answers:
            self.time.after(_MESSAGE_S + agent.node.late, arrive)
        else:
            agent.node.held.append(lambda: self._reply(agent, call, value))

    def _gone(self, call: SimulatedCall) -> None:
        call.ready, call.gone, call.due = True, True, self.time.now
        if call in call.agent.pending:
            call.agent.pending.remove(call)

    def _watch(self, agent: SimulatedAgent, call: SimulatedCall, timeout: float) -> None:
        agent.watch = call
        ended = agent.process is not None and agent.process.exit is not None
        call.due = self.time.now + _MESSAGE_S + agent.node.late + (0.0 if ended else timeout)
        if not agent.node.answers:
            call.due = NEVER

    def _wake(self, agent: SimulatedAgent) -> None:
        """Its process has ended or come further: a watch is answered now."""
        call = agent.watch
        if call is not None and not call.ready and agent.node.answers:
            call.due = min(call.due, self.time.now + _MESSAGE_S + agent.node.late)

    def _report(self, agent: SimulatedAgent) -> Report:
        process, training = agent.process, agent.training
        agent.watch = None
        if process is None or training is None:
            return Report(0, None, "", None, {}, None, (), None)
        state = "X" if process.exit else "S"
        return Report(
            training.start, 1000 + process.rank, state, training.heartbeat(process), training.marks(process),
            process.exit, (), None,
        )  # fmt: skip

    # -- agents --------------------------------------------------------------------------------------------------------

    def _begin(self, agent: SimulatedAgent) -> None:
        node = agent.node
        if agent.ended:
            self._end(agent)
            return
        if node.used >= node.slots:  # it waits for the room that it was promised
            self.time.after(
                1.0, lambda: agent.alive and self._deliver(node, lambda: self._begin(agent), agent)
            )
            return
        node.used += 1
        node.agents.append(agent)
        up = self.rng.uniform(2.0, 6.0) * node.slow
        self.time.after(up, lambda: self._comes_up(agent))
        self.time.after(
            up + self.rng.uniform(5.0, 15.0) * node.slow, lambda: self._comes_up(agent, warm=True)
        )

    def _comes_up(self, agent: SimulatedAgent, *, warm: bool = False) -> None:
        if not agent.alive:
            return
        agent.up, agent.warm = True, agent.warm or warm
        waiting, agent.waiting = agent.waiting, {}
        for method, call in waiting.items():
            self._called(agent, call, method.split()[0], ())

    def _do_home(self, agent: SimulatedAgent) -> Home:
        return Home(agent.node.name, f"10.0.0.{agent.number}", agent.node.name)

    def _do_warm(self, agent: SimulatedAgent) -> None:
        return None

    def _do_free_port(self, agent: SimulatedAgent) -> int:
        return 4711

    def _do_close(self, agent: SimulatedAgent) -> None:
        self._kill_process(agent)

    def _do_kill(self, agent: SimulatedAgent) -> bool:
        self._kill_process(agent)
        return True

    def _do_stacks(self, agent: SimulatedAgent, timeout: float) -> str:
        return ""

    def _do_send_signal(self, agent: SimulatedAgent, number: int) -> None:
        if agent.process is not None and agent.process.lives and agent.training is not None:
            agent.training.stop()

    def _do_start(self, agent: SimulatedAgent, settings: dict[str, Any]) -> int:
        start, world = settings["start"], settings["world_size"]
        training = self.trainings.get(start)
        if training is None:
            self._check_alone(start)
            training = SimulatedTraining(start, world, self.recipe, self.time, self.storage, self.rng)
            self.trainings[start] = training
            self.on_start(training)
        agent.training = training
        agent.process = training.fork(settings["rank"], agent.node.slow, lambda: self._wake(agent))
        training.slow_down(max(agent.node.slow, training._slowest))
        return 1000 + settings["rank"]

    def _check_alone(self, start: int) -> None:
        """No attempt before this one can still train, and none of its processes is where somebody could kill it."""
        for number, training in list(self.trainings.items()):
            if number != start and training.is_running:
                raise Violation(f"attempt {start} begins while attempt {number} trains")
        for agent in self.agents:
            if agent.process is not None and agent.process.lives and agent.alive:
                on_its_way = agent.ended and self.time.now - agent.ended_at < _ON_ITS_WAY_S
                if agent.node.answers and self.time.now >= self.head_back and not on_its_way:
                    raise Violation(
                        f"attempt {start} begins; on {agent.node.name} a process of another lives"
                    )
                self.orphans += 1
        for number in [number for number in self.trainings if number < start - 3]:
            del self.trainings[number]
        self.agents = [agent for agent in self.agents if agent.alive]

    def _kill_process(self, agent: SimulatedAgent) -> None:
        if agent.process is not None and agent.training is not None and agent.process.lives:
            agent.training.kill(agent.process, 9, prompt=False)

    def _end(self, agent: SimulatedAgent) -> None:
        """It is killed, with all that it has started."""
        if agent.alive:
            self._kill_process(agent)
            self._die(agent)

    def _die(self, agent: SimulatedAgent) -> None:
        agent.alive = False
        if agent in agent.node.agents:
            agent.node.agents.remove(agent)
            self.time.after(_ENDS_S, lambda: setattr(agent.node, "used", agent.node.used - 1))
        watch = [agent.watch] if agent.watch is not None and not agent.watch.ready else []
        for call in [*agent.pending, *watch]:
            self._gone(call)

    # -- what happens to it --------------------------------------------------------------------------------------------

    def free(self) -> int:
        """Workers for which there is room."""
        return sum(
            n.slots - n.used for n in self.nodes.values() if n.answers and n.listed and n.deadline is None
        )

    def fit(self) -> int:
        """Workers that nodes which can be reached, and stay, have room for."""
        return sum(n.slots for n in self.nodes.values() if n.answers and n.listed and n.deadline is None)

    def agent_dies(self, agent: SimulatedAgent) -> None:
        """Its Ray worker is killed, and its process with it."""
        if agent.alive:
            if agent.process is not None and agent.training is not None:
                agent.training.kill(agent.process)
            self._die(agent)

    def node_dies(self, node: SimulatedNode, *, orderly: bool = False) -> None:
        """All on it ends; the cluster takes a while to find out, unless it was told."""
        if not node.alive:
            return
        node.alive, node.orderly, node.deadline = False, orderly, None
        node.held.clear()
        noticed = 0.2 if orderly else self.rng.uniform(0.5, LISTED_S)
        for agent in list(node.agents):
            if agent.process is not None and agent.training is not None:
                agent.training.kill(agent.process)
                if agent.watch is not None:
                    agent.watch.due = NEVER  # nobody is there to answer
            self.time.after(noticed, lambda agent=agent: self._die(agent))
        self.time.after(0.2 if orderly else LISTED_S, lambda: setattr(node, "listed", False))

    def node_comes(self, name: str, slots: int) -> None:
        """A node joins, under a name that none has had."""
        self.nodes[name], self.joined = SimulatedNode(name, slots), self.time.now
        for old in [one for one, node in self.nodes.items() if not node.alive and not node.listed]:
            if not self.nodes[old].agents and len(self.nodes) > 4000:
                del self.nodes[old]

    def cut_off(self, node: SimulatedNode) -> None:
        """It can't be reached; what is on it goes on."""
        node.reachable, node.cut_at = False, self.time.now
        for agent in node.agents:
            if agent.watch is not None:
                agent.watch.due = NEVER
            if agent.process is not None and agent.training is not None and agent.process.lives:
                agent.training.cut_off()

    def reach_again(self, node: SimulatedNode) -> None:
        """It can be reached again."""
        if not node.alive:
            return
        node.reachable = True
        held, node.held = node.held, []
        if self.time.now - node.cut_at > REJOINS_S:
            node.alive = False
            self.node_leaves(node)
            return
        for message in held:
            message()
        for agent in node.agents:
            if agent.watch is not None:
                agent.watch.due = self.time.now + _MESSAGE_S

    def node_leaves(self, node: SimulatedNode) -> None:
        """The cluster has given it up: it ends what it has."""
        node.alive = node.listed = False
        for agent in list(node.agents):
            self._kill_process(agent)
            self._die(agent)

    def driver_dies(self) -> None:
        """Its agents end after it, those that can be reached; it notices nothing more."""
        self.driver_dead = True
        for agent in self.agents:
            agent.ended, agent.ended_at = True, self.time.now
            if agent.alive:
                wait = self.rng.uniform(0.5, 5.0)
                self.time.after(wait, lambda agent=agent: self._deliver(agent.node, lambda: self._end(agent)))

    def check_nothing_left(self) -> None:
        """After a driver's end: no agent and no process where anybody could end it."""
        for agent in self.agents:
            if agent.alive and agent.node.answers:
                raise Violation(f"agent {agent.number} is left on {agent.node.name}")
            if agent.process is not None and agent.process.lives and agent.node.answers and agent.alive:
                raise Violation(f"a process is left on {agent.node.name}")
