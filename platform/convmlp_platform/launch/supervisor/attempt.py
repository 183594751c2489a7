"""One attempt: a training process on each agent, watched until all have ended, however they do.

What one look costs grows with the number of ranks, so there are a few a second however many ranks there are, and the
news of a thousand ranks come once a second each (`look_s`). What can't wait an agent tells at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import Cause
from convmlp_platform.health.hangs.hang_watch import Hang, HangWatch, RankView
from convmlp_platform.launch.cluster.worker_environment import private_variables
from convmlp_platform.launch.cluster_view import Calls, Cluster, ClusterSilent, answer_or_none
from convmlp_platform.launch.supervisor.verdict import FailureVerdict, Order, judge, patience
from convmlp_platform.launch.workers.placement import Home, Seat, environment, seats
from convmlp_platform.launch.workers.process_files import FINAL_STOP
from convmlp_platform.launch.workers.worker_group import Member
from convmlp_platform.launch.workers.worker_report import Ending, Report, ending_of, relay

LOOK_S = 0.5
"""How often an agent tells how its rank is, of a run of up to 500 workers."""
UNREACHABLE_S = 20.0
"""An agent that hasn't answered for so long is lost."""
_STACKS_S, _KILL_S = 3.0, 10.0
# An agent kills in a moment. Of those that haven't by then, the nodes are asked whether they are still there.
_KILLED_S = 1.5
# A driver on Ray takes in some thousand answers a second. This many leave it most of its time.
_NEWS_PER_S = 1000
# After the first news of a look others are waited for, so that looks are no more than ten a second.
_GATHER_S = 0.1
# Time in which the driver itself stood still is no silence of an agent: a look counts for no more than this.
_MOST_PER_LOOK_S = 5.0


def look_s(world_size: int) -> float:
    """Seconds between two reports of an agent."""
    return max(LOOK_S, world_size / _NEWS_PER_S)


@dataclass
class _Rank:
    """A rank as it was last seen; `heard`: when, by the attempt's own time."""

    seat: Seat
    home: Home
    member: Member
    watch: Any
    view: RankView
    heard: float = 0.0
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
    cluster: Cluster
    hang: Hang | None = None
    stacks: dict[int, str] = field(default_factory=dict)
    order: Order | None = None
    gone: list[Member] = field(default_factory=list)
    """Agents that can't be used any more."""
    failed_at: float | None = None
    """When the first failure was told, by the cluster's monotonic clock."""
    late: bool = False
    """Whether an order's deadline passed and the processes were killed."""
    summary: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    """The furthest that a rank was seen at."""
    _running: bool = False

    def __post_init__(self) -> None:
        self._clock, self.look_s = self.cluster.clock, look_s(len(self.ranks))
        self._gather_s = min(_GATHER_S, len(self.ranks) / _NEWS_PER_S)
        self._hangs = HangWatch(self.job.launch.hang, len(self.ranks), self.look_s)
        self._watches = {rank.watch: rank for rank in self.ranks}
        self._news: dict[int, RankView] = {}
        self._looked = self._judged = self._clock.monotonic()
        self._awake = 0.0

    @property
    def endings(self) -> list[Ending]:
        return [rank.ending for rank in self.ranks if rank.ending]

    @property
    def stepped(self) -> bool:
        """Whether every rank has finished a step."""
        return self._running or all("stepped" in rank.marks for rank in self.ranks)

    @property
    def first_step(self) -> int:
        """The step that it went on after."""
        return int(self.ranks[0].marks.get("step", 0))

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
            if self.order is not None and self._clock.monotonic() > self.order.deadline:
                self.late = True
                break
            if self.order is None and self.failed_at is None and (hang := self._hung()):
                self._collect(hang)
                break
        self.kill()

    def stop(self, order: Order) -> None:
        """Tell every rank to save and end."""
        self.order = order
        for rank in self.ranks:
            number = FINAL_STOP if order.cause == "stopped" else signal.SIGTERM
            self.cluster.ask(rank.member.actor, "send_signal", number)

    def kill(self) -> None:
        """Leave no process of this attempt; agents that can't do that are `gone`."""
        asked = [rank for rank in self.ranks if not _is_lost(rank)]
        killed = self._killed(asked)
        silent = [rank.watch for rank in asked if rank.seat.rank in killed and rank.ending is None]
        # What they still had to say.
        for call in self.cluster.done(silent, least=len(silent), timeout=LOOK_S):
            relay(answer_or_none(self.cluster, call))
        self.gone += [rank.member for rank in self.ranks if rank.seat.rank not in killed]

    def _killed(self, asked: Sequence[_Rank]) -> set[int]:
        """The ranks among these whose agents have left no process."""
        calls = Calls(self.cluster)
        for rank in asked:
            calls.ask(rank.member.actor, "kill")
        done = calls.answers(_KILLED_S)
        late = [place for place, killed in enumerate(done) if not killed]
        try:
            living = self.cluster.answering({asked[place].home.node for place in late}) if late else set()
        except ClusterSilent:
            living = {rank.home.node for rank in asked}
        late = [place for place in late if asked[place].home.node in living]
        again = Calls(self.cluster, [calls.calls[place] for place in late]).answers(_KILL_S - _KILLED_S)
        for place, killed in zip(late, again, strict=True):
            done[place] = killed
        return {rank.seat.rank for rank, killed in zip(asked, done, strict=True) if killed}

    def _over(self) -> bool:
        if not self._watches:
            return True
        if self.failed_at is None:
            return False
        return self._clock.monotonic() - self.failed_at >= patience(self.endings)

    def _look(self) -> None:
        """Take in what the agents tell, waiting for it for a moment."""
        calls = list(self._watches)
        done = self.cluster.done(calls, timeout=self.look_s / 2)
        if done and len(done) < len(calls):
            self._clock.sleep(self._gather_s)
            done = self.cluster.done(calls)
        now = self._clock.monotonic()
        self._awake += min(now - self._looked, max(_MOST_PER_LOOK_S, 2 * self.look_s))
        self._looked = now
        self._lose([rank for rank in map(self._watches.pop, done) if not self._take(rank, now)])
        for rank in [one for one in self._watches.values() if self._awake - one.heard > UNREACHABLE_S]:
            del self._watches[rank.watch]
            self._lost(rank, f"doesn't answer any more (for {UNREACHABLE_S:.0f} s)")
        if not self._running and self.stepped:
            self._running = True
            self.on_running(self)

    def _hung(self) -> Hang | None:
        """The hang that the news show; it isn't asked for more often than there are new ones of all ranks."""
        if self._looked - self._judged < self.look_s / 2:
            return None
        self._judged = self._looked
        self._hangs.update(list(self._news.values()))
        self._news.clear()
        return self._hangs.check()

    def _take(self, rank: _Rank, now: float) -> bool:
        """Take in a rank's report; False: there is none, its agent is gone."""
        report: Report | None = answer_or_none(self.cluster, rank.watch)
        if report is None:
            return False
        relay(report)
        rank.heard = self._awake
        rank.view = RankView(rank.seat.rank, rank.home.host, report.heartbeat, report.state, now)
        self._news[rank.seat.rank] = rank.view
        if report.heartbeat is not None and report.heartbeat.step > self.step:
            self.step = report.heartbeat.step
        rank.marks = report.marks
        if report.broken is not None:
            self.gone.append(rank.member)
        if report.exit is not None:
            self._end(rank, ending_of(rank.seat.rank, rank.home.host, report))
            if rank.seat.rank == 0 and report.exit.outcome:
                self.summary = report.exit.outcome.get("summary") or {}
        elif report.broken is not None:
            self._lost(rank, report.broken.partition("\n")[0])
        else:
            rank.watch = self.cluster.ask(rank.member.actor, "watch", self.look_s)
            self._watches[rank.watch] = rank
        return True

    def _lose(self, ranks: Sequence[_Rank]) -> None:
        """Take note that the agents of these ranks are gone; how, is asked for all of them at once."""
        if not ranks:
            return
        nodes = {rank.home.node for rank in ranks}
        try:
            orderly = self.cluster.taken_away(nodes)
            answering = self.cluster.answering(nodes - orderly)
        except ClusterSilent:
            for rank in ranks:
                self._lost(rank, "was lost while the cluster's head was silent")
            return
        for rank in ranks:
            if rank.home.node in orderly:
                self._lost(rank, "was lost with its node, which was shut down", "preemption")
            else:
                what = "Ray worker" if rank.home.node in answering else "node"
                self._lost(rank, f"was lost with its {what}")

    def _lost(self, rank: _Rank, how: str, cause: Cause = "hardware") -> None:
        beat = rank.view.heartbeat
        phase, step = (beat.phase.name.lower(), beat.step) if beat else ("start", 0)
        where = (rank.seat.rank, rank.home.host)
        ending = Ending(*where, "lost", self._clock.unix(), phase, step, cause=cause, lost=how)
        self._end(rank, ending)

    def _end(self, rank: _Rank, ending: Ending) -> None:
        rank.ending = ending
        self.step = max(self.step, ending.step)
        if ending.is_failure and self.failed_at is None:
            self.failed_at = self._clock.monotonic()

    def _collect(self, hang: Hang) -> None:
        """Every rank's stacks, as far as they can be had."""
        asked, calls = [rank for rank in self.ranks if rank.ending is None], Calls(self.cluster)
        for rank in asked:
            calls.ask(rank.member.actor, "stacks", _STACKS_S)
        for rank, text in zip(asked, calls.answers(2 * _STACKS_S), strict=True):
            if text is not None:
                self.stacks[rank.seat.rank] = text
        self.hang = hang.with_stacks(self.stacks)


def begin_attempt(
    job: TrainJob,
    start: int,
    members: Sequence[Member],
    on_running: Callable[[Attempt], None],
    cluster: Cluster,
) -> Attempt | None:
    """Start a process on each of `members`, which are in the order of ranks; None where one of them is gone."""
    homes = [member.home for member in members if member.home is not None]
    values = job.given_values()
    first = Calls(cluster)
    first.ask(members[0].actor, "free_port")
    (port,) = first.answers(UNREACHABLE_S)
    if port is None:
        return None
    private = private_variables()
    meeting = {"MASTER_ADDR": homes[0].address, "MASTER_PORT": str(port)}
    calls, places = Calls(cluster), list(zip(seats(homes), homes, members, strict=True))
    for seat, home, member in places:
        settings = {
            "job": values,
            # By this call only, see launch.cluster.worker_environment: it holds the passwords of MLflow.
            "environment": private | environment(seat, len(members), home, start) | meeting,
            "rank": seat.rank,
            "world_size": len(members),
            "start": start,
        }
        calls.ask(member.actor, "start", settings)
    pids = calls.answers(UNREACHABLE_S)
    every, now = look_s(len(members)), cluster.clock.monotonic()
    ranks = [
        _Rank(
            seat,
            home,
            member,
            cluster.ask(member.actor, "watch", every),
            RankView(seat.rank, home.host, None, received_at=now),
        )
        for seat, home, member in places
    ]
    return Attempt(job, start, ranks, dict(enumerate(pids)), on_running, cluster)


def _is_lost(rank: _Rank) -> bool:
    return rank.ending is not None and rank.ending.kind == "lost"
