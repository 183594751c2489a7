"""One attempt: a training process on each agent, watched until all have ended, however they do."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import Cause
from convmlp_platform.health.hangs.hang_watch import Hang, HangWatch, RankView
from convmlp_platform.launch.cluster.cluster_view import answering, taken_away
from convmlp_platform.launch.cluster.worker_environment import private_variables
from convmlp_platform.launch.supervisor.verdict import FailureVerdict, Order, judge, patience
from convmlp_platform.launch.workers.placement import Home, Seat, environment, seats
from convmlp_platform.launch.workers.process_files import FINAL_STOP
from convmlp_platform.launch.workers.worker_group import Member
from convmlp_platform.launch.workers.worker_report import Ending, ending_of, relay

LOOK_S = 0.5
"""How often an agent tells how its rank is; what can't wait it tells at once."""
UNREACHABLE_S = 20.0
"""An agent that hasn't answered for so long is lost."""
_STACKS_S, _KILL_S = 3.0, 10.0


@dataclass
class _Rank:
    """A rank as it was last seen."""

    seat: Seat
    home: Home
    member: Member
    watch: Any
    heard: float
    view: RankView
    marks: dict[str, float] = field(default_factory=dict)
    ending: Ending | None = None


@dataclass
class Attempt:
    """Made by `begin_attempt`. `endings` are those that nobody here brought about by killing.

    Args:
        on_running: is called once all ranks have finished their first step.
    """

    job: TrainJob
    start: int
    ranks: list[_Rank]
    pids: dict[int, int | None]
    on_running: Callable[[Attempt], None]
    hang: Hang | None = None
    stacks: dict[int, str] = field(default_factory=dict)
    order: Order | None = None
    gone: list[Member] = field(default_factory=list)
    """Agents that can't be used any more."""
    failed_at: float | None = None
    """When the first failure was told, by time.monotonic."""
    late: bool = False
    """Whether an order's deadline passed and the processes were killed."""
    summary: dict[str, Any] = field(default_factory=dict)
    _running: bool = False

    def __post_init__(self) -> None:
        self._hangs = HangWatch(self.job.launch.hang, len(self.ranks))

    @property
    def endings(self) -> list[Ending]:
        return [rank.ending for rank in self.ranks if rank.ending]

    @property
    def stepped(self) -> bool:
        """Whether every rank has finished a step."""
        return all("stepped" in rank.marks for rank in self.ranks)

    @property
    def first_step(self) -> int:
        """The step that it went on after."""
        return int(self.ranks[0].marks.get("step", 0))

    @property
    def step(self) -> int:
        """The furthest that a rank was seen at."""
        told = [rank.ending.step for rank in self.ranks if rank.ending]
        return max(
            [*told, *(rank.view.heartbeat.step for rank in self.ranks if rank.view.heartbeat)], default=0
        )

    @property
    def saved(self) -> int | None:
        """The step that all ranks have saved and ended after, None where they haven't."""
        steps = {rank.ending.step for rank in self.ranks if rank.ending and rank.ending.kind == "stopped"}
        whole = all(rank.ending and rank.ending.kind == "stopped" for rank in self.ranks)
        return max(steps) if whole else None

    def verdict(self) -> FailureVerdict:
        """Returns the reason why it ended, once it has."""
        return judge(self.endings, step=self.step, hang=self.hang, order=self.order, late=self.late)

    def watch(self, asked: Callable[[Attempt], Order | None]) -> None:
        """Return when no process of this attempt is left.

        Args:
            asked: is looked at again and again; the first order is carried out. May raise, to end it all at once.
        """
        while not self._over():
            self._look()
            if (order := asked(self)) is not None:
                self.stop(order)
            if self.order is not None and time.monotonic() > self.order.deadline:
                self.late = True
                break
            if self.order is None and self.failed_at is None and (hang := self._hangs.check()):
                self._collect(hang)
                break
        self.kill()

    def stop(self, order: Order) -> None:
        """Tell every rank to save and end."""
        self.order = order
        for rank in self.ranks:
            number = FINAL_STOP if order.cause == "stopped" else signal.SIGTERM
            rank.member.actor.send_signal.remote(number)

    def kill(self) -> None:
        """Leave no process of this attempt; agents that can't do that are `gone`."""
        calls = {rank.member.actor.kill.remote(): rank for rank in self.ranks if not _is_lost(rank)}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_KILL_S) if calls else ([], [])
        for call, rank in calls.items():
            if call not in done or not _answer(call):
                self.gone.append(rank.member)
            elif rank.ending is None:  # what it still had to say
                said, _ = ray.wait([rank.watch], timeout=LOOK_S)
                relay(_answer(rank.watch) if said else None)
        self.gone += [rank.member for rank in self.ranks if _is_lost(rank)]

    def _over(self) -> bool:
        if all(rank.ending for rank in self.ranks):
            return True
        if self.failed_at is None:
            return False
        return time.monotonic() - self.failed_at >= patience(self.endings)

    def _look(self) -> None:
        """Take in what the agents tell, waiting for it for a moment."""
        watches = {rank.watch: rank for rank in self.ranks if rank.ending is None}
        done, _ = ray.wait(list(watches), num_returns=1, timeout=LOOK_S / 2)
        more, _ = ray.wait(list(watches), num_returns=len(watches), timeout=0) if done else ([], [])
        for ref in more:
            self._take(watches[ref])
        for rank in watches.values():
            if rank.ending is None and time.monotonic() - rank.heard > UNREACHABLE_S:
                self._lose(rank, f"doesn't answer any more (for {UNREACHABLE_S:.0f} s)")
        self._hangs.update([rank.view for rank in self.ranks])  # that one has ended, its state says
        if not self._running and self.stepped:
            self._running = True
            self.on_running(self)

    def _take(self, rank: _Rank) -> None:
        report = _answer(rank.watch)
        if report is None:
            how, cause = _how_lost(rank.home)
            self._lose(rank, how, cause)
            return
        relay(report)
        rank.heard = time.monotonic()
        rank.view = RankView(rank.seat.rank, rank.home.host, report.heartbeat, report.state)
        rank.marks = report.marks
        if report.broken is not None:
            self.gone.append(rank.member)
        if report.exit is not None:
            self._end(rank, ending_of(rank.seat.rank, rank.home.host, report))
            if rank.seat.rank == 0 and report.exit.outcome:
                self.summary = report.exit.outcome.get("summary") or {}
        elif report.broken is not None:
            self._lose(rank, report.broken.partition("\n")[0])
        else:
            rank.watch = rank.member.actor.watch.remote(LOOK_S)

    def _lose(self, rank: _Rank, how: str, cause: Cause = "hardware") -> None:
        beat = rank.view.heartbeat
        phase, step = (beat.phase.name.lower(), beat.step) if beat else ("start", 0)
        where = (rank.seat.rank, rank.home.host)
        ending = Ending(*where, "lost", time.time(), phase, step, cause=cause, lost=how)
        self._end(rank, ending)

    def _end(self, rank: _Rank, ending: Ending) -> None:
        rank.ending = ending
        if ending.is_failure and self.failed_at is None:
            self.failed_at = time.monotonic()

    def _collect(self, hang: Hang) -> None:
        """Every rank's stacks, as far as they can be had."""
        calls = {
            rank.member.actor.stacks.remote(_STACKS_S): rank for rank in self.ranks if rank.ending is None
        }
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=2 * _STACKS_S)
        for call in done:
            text = _answer(call)
            self.stacks[calls[call].seat.rank] = text or "its agent is gone\n"
        self.hang = hang.with_stacks(self.stacks)


def begin_attempt(
    job: TrainJob,
    start: int,
    members: Sequence[Member],
    on_running: Callable[[Attempt], None],
) -> Attempt | None:
    """Start a process on each of `members`, which are in the order of ranks; None where one of them is gone."""
    homes = [member.home for member in members if member.home is not None]
    values = job.model_dump(mode="json", exclude_unset=True) | {"kind": "train"}
    port = _answer(members[0].actor.free_port.remote(), UNREACHABLE_S)
    if port is None:
        return None
    private = private_variables()
    meeting = {"MASTER_ADDR": homes[0].address, "MASTER_PORT": str(port)}
    calls, ranks = [], []
    for seat, home, member in zip(seats(homes), homes, members, strict=True):
        settings = {
            "job": values,
            # By this call only, see launch.cluster.worker_environment: it holds the passwords of MLflow.
            "environment": private | environment(seat, len(members), home, start) | meeting,
            "rank": seat.rank,
            "world_size": len(members),
            "start": start,
        }
        calls.append(member.actor.start.remote(settings))
    pids = [_answer(call, UNREACHABLE_S) for call in calls]
    for seat, home, member in zip(seats(homes), homes, members, strict=True):
        watch, view = member.actor.watch.remote(LOOK_S), RankView(seat.rank, home.host, None)
        ranks.append(_Rank(seat, home, member, watch, time.monotonic(), view))
    return Attempt(job, start, ranks, dict(enumerate(pids)), on_running)


def _answer(call: Any, timeout: float | None = None) -> Any:
    """Returns an agent's answer; None if the agent is gone or does not answer within `timeout` seconds."""
    try:
        return ray.get(call, timeout=timeout)
    except ray.exceptions.RayError:
        return None


def _how_lost(home: Home) -> tuple[str, Cause]:
    if taken_away(home.node):
        return "was lost with its node, which was shut down", "preemption"
    return f"was lost with its {'Ray worker' if answering([home.node]) else 'node'}", "hardware"


def _is_lost(rank: _Rank) -> bool:
    return rank.ending is not None and rank.ending.kind == "lost"
