"""The loop in the driver that keeps a run alive: agents, an attempt, its end, the verdict, the next attempt.

Everything between two attempts happens while the agents stay up, so a restart costs a fork and a load.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import LaunchError, PlatformError
from convmlp_platform.health.events import RunEvents, read_events, signal_name
from convmlp_platform.launch import messages
from convmlp_platform.launch.cluster.ray_internals import quiet_deaths
from convmlp_platform.launch.cluster_view import Cluster
from convmlp_platform.launch.early_start import EarlyStart
from convmlp_platform.launch.supervisor.attempt import Attempt, begin_attempt
from convmlp_platform.launch.supervisor.restarts import (
    FAILURES,
    STARTING,
    Budgets,
    Recovery,
    Spare,
    attempts_last_s,
)
from convmlp_platform.launch.supervisor.signals import Interrupted, StopSignals
from convmlp_platform.launch.supervisor.verdict import FailureVerdict, Order
from convmlp_platform.launch.workers.fork_server_link import modules_for
from convmlp_platform.launch.workers.worker_group import Member, WorkerGroup
from convmlp_platform.runs.lease import run_lease
from convmlp_platform.runs.run_folder import RunFolder, record_submission, run_path
from convmlp_platform.tracking.provenance.submitted_job import GivenJob
from convmlp_platform.training.guard.incidents import open_incident
from data_prep import console
from data_prep.storage.urls import scrubbed

if TYPE_CHECKING:  # they import Ray
    from convmlp_platform.launch.supervisor.run_metrics import RunMetrics

# Before a run goes on with fewer workers: Ray takes a moment to give back the room of those that were lost.
_SETTLE_S = 2.0
_TICK_S, _PING_S = 0.1, 5.0
# Agents that have waited for others for longer are asked whether they are still there before they are counted on.
_WAITED_S = 3.0
# A node that will be taken away is left when others are ready in its place: after `_REPLACE_S` at the latest, and at
# once where it has no more than `_HURRY_S` left.
_REPLACE_S, _HURRY_S = 30.0, 45.0


def train(
    job: TrainJob,
    *,
    use_gpu: bool,
    own_ray: bool = False,
    signals: StopSignals | None = None,
    given: GivenJob | None = None,
    early: EarlyStart | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, Any]:
    """Run `job` on the connected cluster to its end, through whatever happens on the way.

    Args:
        own_ray: whether the cluster is one node that was started for this job, to which no other will come.
        signals: takes the place of the process's own, where this isn't its main thread.
        given: the file that the job came from, for the record.
        early: the fork server of the driver's node, for the agents there.
        on_step: is told again and again how many steps are done.

    Returns the summary of `launch.run_summary.summary_of`, with `restarts` (cause → how many).

    Raises:
        PlatformError: that a worker raised; LaunchError where the workers failed otherwise, there is no room for
            them, or another driver trains this run.
        Interrupted: after SIGINT or SIGTERM.
    """
    from convmlp_platform.launch.cluster.ray_cluster import RayCluster
    from convmlp_platform.launch.supervisor.run_metrics import RunMetrics

    settled = job.model_copy(update={"launch": job.launch.model_copy(update={"use_gpu": use_gpu})})
    folder = RunFolder(run_path(job), "")
    signals = signals or StopSignals()
    with signals.listening(), quiet_deaths(), run_lease(folder.path).hold() as lost:
        record_submission(folder.path, given)
        if job.model.init_from is not None:
            from convmlp_platform.training.build.initial_weights import keep_weights

            keep_weights(job)  # here, as workers may not reach what the driver does
        cluster = RayCluster()
        if early is not None and (node := cluster.own_node()) is not None:
            early.share(node)
        metrics = RunMetrics(job.name, folder.path / "checkpoints" / "latest", job.launch.num_workers)
        return Supervisor(
            settled, use_gpu, folder, signals, lost, own_ray, early, on_step, cluster=cluster, metrics=metrics
        ).run()


class Supervisor:
    """One driver's hold on one run.

    Args:
        lost: is set where another driver has taken the run over.
        cluster: of all that happens outside of this process, its clock too.
    """

    def __init__(
        self,
        job: TrainJob,
        use_gpu: bool,
        folder: RunFolder,
        signals: StopSignals,
        lost: threading.Event,
        own_ray: bool = False,
        early: EarlyStart | None = None,
        on_step: Callable[[int], None] = lambda step: None,
        *,
        cluster: Cluster,
        metrics: RunMetrics,
    ) -> None:
        self._own_ray, self._early, self._on_step = own_ray, early, on_step
        self._cluster, self._clock, self.metrics = cluster, cluster.clock, metrics
        self.job, self.folder, self.signals, self._lease_lost = job, folder, signals, lost
        self.events = RunEvents(folder.events, self._clock.unix)
        self.budgets = Budgets(job.launch.restarts)
        self.group = WorkerGroup(job, use_gpu, modules_for(job), cluster, early.key if early else None)
        now = self._clock.monotonic()
        self.recovery = Recovery(since=now, judged=now)
        self._noticed, self._settle = 0.0, _SETTLE_S
        self._began, self._spare = now, Spare()

    def run(self) -> dict[str, Any]:
        """See `train`."""
        launch, code = self.job.launch, 1
        fields = {"num_workers": launch.num_workers, "min_workers": self.group.least}
        self.events.append("driver_started", host=socket.gethostname(), pid=os.getpid(), **fields)
        try:
            summary = self._attempts()
            code = 0
            return summary | {"restarts": dict(self.budgets.totals)}
        except PlatformError as error:
            code = error.exit_code
            raise
        except Interrupted as stop:
            code = 128 + stop.signal_number
            raise
        finally:
            self.group.close()
            self.events.append("driver_ended", exit_code=code)

    def _attempts(self) -> dict[str, Any]:
        start = max((event.get("start") or 0 for event in read_events(self.folder.events)), default=0)
        while True:
            members = self._assemble()
            self.recovery.placed, self._noticed = self._clock.monotonic(), 0.0
            attempt = begin_attempt(self.job, start + 1, members, self._on_running, self._cluster)
            if attempt is None:
                self.group.ping(_PING_S)
                continue
            if self._early is not None:
                self._early.close()
            start += 1
            hosts = [rank.home.host for rank in attempt.ranks]
            self.events.append(
                "attempt_started", start=start, world_size=len(hosts), hosts=hosts, reason=self.recovery.reason,
                pids=attempt.pids,
            )  # fmt: skip
            try:
                attempt.watch(self._order)
            except (Interrupted, PlatformError) as stop:
                attempt.kill()
                self._tell_end(attempt, FailureVerdict("stopped", f"ended at once: {stop}"))
                raise
            if (summary := self._after(attempt)) is not None:
                return summary

    def _assemble(self) -> list[Member]:
        """The members for the next attempt, once there are enough."""
        launch, began, told = self.job.launch, self._clock.monotonic(), False
        while True:
            self._check_stop()
            self.group.refresh()
            if self.group.broken is not None:
                raise LaunchError(f"training can't be started on a worker: {self.group.broken}")
            ready, waited = self.group.ready, self._clock.monotonic() - began
            if len(ready) == launch.num_workers and self._still_there(waited):
                return ready
            if self._own_ray and not self.group.answering(self.group.cluster().alive):
                raise LaunchError(messages.own_ray_died(self.job.name), cause="hardware")
            if not self.group.coming and waited > self._settle:
                if len(ready) >= self.group.least and self._still_there(waited):
                    return ready
                if waited > launch.wait_for_workers_s:
                    raise LaunchError(messages.no_room(launch, self.group.fits))
                if not told:
                    told = True
                    console.say(messages.waiting(launch, self.group.fits))
            self._clock.sleep(_TICK_S)

    def _still_there(self, waited: float) -> bool:
        """Whether the ready agents are, after so many seconds of waiting; those that aren't are dropped."""
        if waited < _WAITED_S:
            return True
        before = len(self.group.members)
        self.group.ping(_PING_S)
        return len(self.group.members) == before

    def _check_stop(self) -> None:
        if self.signals.number is not None:
            raise Interrupted(self.signals.number)
        if self._lease_lost.is_set():
            raise LaunchError(f"another driver has taken over run {self.job.name!r}; this one has stopped")

    def _order(self, attempt: Attempt) -> Order | None:
        """Returns the order to the running attempt to save and end; None if it should go on."""
        self.metrics.look(attempt.step, len(attempt.ranks))
        self._on_step(attempt.step)
        if self.signals.hurry and self.signals.number is not None:
            raise Interrupted(self.signals.number)
        if attempt.order is not None:
            return None
        grace, now = self.job.launch.preemption_grace_s, self._clock.monotonic()
        if self.signals.number is not None:
            name = signal_name(self.signals.number)
            console.say(messages.stopping(name, grace))
            return Order("stopped", f"stopped by {name}", now + grace)
        self._check_stop()
        leaving = self.group.cluster().leaving(self._clock.unix())
        doomed = [rank for rank in attempt.ranks if rank.home.node in leaving]
        if doomed:
            left = min(leaving[rank.home.node] for rank in doomed)
            self.group.refresh()
            self._noticed = self._noticed or now
            if self.group.coming and left > _HURRY_S and now - self._noticed < _REPLACE_S:
                return None  # training goes on while others come up in their place
            hosts = ", ".join(sorted({rank.home.host for rank in doomed}))
            return Order("preemption", f"{hosts} will be taken away", now + min(grace, left))
        size = len(attempt.ranks)
        if size < self.job.launch.num_workers and attempt.stepped and self._should_grow(size):
            found = len(self.group.ready)
            return Order(
                "grow", f"there is room for {console.counted(found, 'worker')} instead of {size}", now + grace
            )
        return None

    def _should_grow(self, size: int) -> bool:
        self.group.refresh()
        more = 0 if self.group.coming else max(0, len(self.group.ready) - size)
        if not self._spare.pays(more, size, self._clock.monotonic()):
            return False
        self.group.ping(_PING_S)
        return len(self.group.ready) > size

    def _on_running(self, attempt: Attempt) -> None:
        seconds = self.recovery.seconds([rank.marks for rank in attempt.ranks])
        now = self._clock.monotonic()
        lasts = attempts_last_s(self._began, self.budgets.totals.total(), now)
        self._spare = Spare(sum(seconds[part] for part in STARTING), lasts)
        self.events.append("attempt_running", start=attempt.start, step=attempt.first_step, seconds=seconds)
        if self.recovery.reason != "start":
            tell = messages.going_on if self.recovery.reason in FAILURES else messages.resized
            console.say(tell(attempt.first_step, len(attempt.ranks), sum(seconds.values())))

    def _after(self, attempt: Attempt) -> dict[str, Any] | None:
        """Judge an attempt that has ended: the summary of a run that is finished, None where it goes on."""
        found = attempt.verdict()
        incident = self._record_hang(attempt)
        self._tell_end(attempt, found, incident)
        # The room of a lost node won't come back soon.
        self._settle = _SETTLE_S if self.group.answering({member.node for member in attempt.gone}) else 0.0
        self.group.drop(attempt.gone)
        self.group.leave(self.group.cluster().deadlines)
        if found.cause == "finished":
            return attempt.summary
        if found.cause == "stopped":
            raise Interrupted(self.signals.number or signal.SIGTERM, attempt.saved)
        decision = self.budgets.decide(
            found.cause, self._clock.monotonic(), headline=found.headline, stepped=attempt.stepped
        )
        if not decision.restart:
            raise found.error(decision.note)
        where = f" ({incident})" if incident else ""
        console.say(messages.restarting(found.message + where, decision.note))
        self._recover(attempt, found)
        self._pause(decision.pause_s)
        return None

    def _tell_end(self, attempt: Attempt, found: FailureVerdict, incident: str | None = None) -> None:
        culprit = found.culprit
        self.metrics.ended(found.cause)
        self.events.append(
            "attempt_ended",
            start=attempt.start,
            cause=found.cause,
            rank=culprit.rank if culprit else None,
            host=culprit.host if culprit else None,
            phase=culprit.phase if culprit else None,
            step=culprit.step if culprit else attempt.step,
            message=scrubbed(found.message),
            stalled_s=round(attempt.hang.stalled_s, 3) if attempt.hang else 0.0,
            incident=incident,
        )

    def _recover(self, attempt: Attempt, found: FailureVerdict) -> None:
        now = self._clock.monotonic()
        since = now if attempt.failed_at is None else attempt.failed_at
        detect = 0.0
        if found.culprit and found.culprit.at:  # by the wall clocks of two machines
            detect = max(0.0, self._clock.unix() - (now - since) - found.culprit.at)
        self.recovery = Recovery(found.cause, detect, since, now)

    def _pause(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        while self._clock.monotonic() < until:
            self._check_stop()
            self._clock.sleep(_TICK_S)

    def _record_hang(self, attempt: Attempt) -> str | None:
        """Put every rank's stacks into the run's record; the incident's folder."""
        hang = attempt.hang
        if hang is None:
            return None
        facts = {
            "rank": hang.rank, "host": hang.host, "phase": hang.phase.name.lower(), "note": hang.note,
            "stalled_s": hang.stalled_s, "message": hang.message(), "start": attempt.start,
        }  # fmt: skip
        files = {f"stacks-rank-{rank:05d}.txt": text.encode() for rank, text in attempt.stacks.items()}
        try:
            return str(open_incident(self.folder.incidents, "hang", hang.step, facts, files))
        except OSError as error:
            console.say(f"the stacks can't be kept in {self.folder.incidents}: {error.strerror}")
            return None
