"""One run of the real supervisor on a simulated cluster, from a seed; what must hold in each is checked meanwhile."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import PUBLISHED, PUBLISHED_PER_NODE_HOUR, Faults
from simulated_cluster import DriverKilled, SimulatedCluster, SimulatedTraining, Violation
from simulated_training import Recipe

from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import PlatformError
from convmlp_platform.health.events import read_events
from convmlp_platform.launch.supervisor.restarts import CHARGED
from convmlp_platform.launch.supervisor.signals import Interrupted, StopSignals
from convmlp_platform.launch.supervisor.supervisor import Supervisor
from convmlp_platform.runs.run_folder import RunFolder

REPOSITORY = Path(__file__).resolve().parents[2]
STANDS_STILL_S = 1200.0
"""With enough nodes and nothing that happens, training goes on within this."""
NO_LIMIT = {"hardware": -1, "hang": -1, "storage": -1, "preemption": -1, "code": 1}


@dataclass(frozen=True)
class Scenario:
    """A run and what happens to it.

    Args:
        rate: of faults of single nodes, in multiples of the published one.
        per_day: of the cluster's faults, kind → how many a day.
        restarts: `launch.restarts`; default: no limits but those of code.
    """

    name: str
    nodes: int
    workers: int
    least: int
    days: float
    step_s: float = 5.0
    save_s: float = 300.0
    rate: float = 1.0
    per_day: Mapping[str, float] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=lambda: NO_LIMIT)
    repaired_s: tuple[float, float] = (600.0, 3600.0)

    @property
    def recipe(self) -> Recipe:
        """What is trained."""
        return Recipe(
            self.workers,
            int(self.days * 86400 / self.step_s),
            self.step_s,
            max(1, round(self.save_s / self.step_s)),
        )

    def per_hour(self) -> dict[str, float]:
        """Of all kinds, in the whole cluster."""
        nodes = self.nodes * self.rate * PUBLISHED_PER_NODE_HOUR
        return {kind: nodes * share for kind, share in PUBLISHED.items()} | {
            kind: count / 24.0 for kind, count in self.per_day.items()
        }


@dataclass
class Outcome:
    """What became of a run; `digest` is the same for the same seed and the same code."""

    scenario: str
    seed: int
    end: str
    goodput: float
    wall_s: float
    node_days: float
    injected: Counter[str]
    causes: Counter[str]
    attempts: int
    drivers: int
    recovery_s: list[float]
    slowest: dict[str, float]
    looks: int
    reports: int
    orphans: int
    agents: int
    cpu_s: float
    digest: str


class Untold:
    """In place of the metrics for Prometheus."""

    def look(self, step: int, workers: int) -> None:
        pass

    def ended(self, cause: str) -> None:
        pass


class Observed(SimulatedCluster):
    """A cluster that sees to it that training goes on as long as it can."""

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        super().__init__(scenario.nodes, scenario.recipe, rng)
        self.scenario = scenario
        self.faults: Faults | None = None
        self.good = 0.0

    def done(self, calls: Any, *, least: int = 1, timeout: float = 0.0) -> list[Any]:
        found = super().done(calls, least=least, timeout=timeout)
        now = self.time.now
        if any(training.is_running for training in self.trainings.values()):
            self.good = now
        elif self.faults is not None:
            since = max(self.good, self.faults.last, self.joined)
            if now - since > STANDS_STILL_S and self.fit() >= self.scenario.least:
                raise Violation(f"no training for {now - since:.0f} s with {self.fit()} nodes at {now:.1f} s")
        return found


def a_job(scenario: Scenario) -> TrainJob:
    """The job of a scenario, as its workers would get it."""
    job = load_job(REPOSITORY / "jobs/pretrain_digits.yaml", [])
    assert isinstance(job, TrainJob)
    restarts = job.launch.restarts.model_copy(update=dict(scenario.restarts))
    launch = job.launch.model_copy(
        update={
            "num_workers": scenario.workers, "min_workers": scenario.least, "wait_for_workers_s": 30 * 86400.0,
            "use_gpu": False, "restarts": restarts,
        }
    )  # fmt: skip
    return job.model_copy(update={"launch": launch})


def simulate(
    scenario: Scenario, seed: int, script: Callable[[Observed, Faults], None] | None = None
) -> Outcome:
    """Run it to its end.

    Args:
        script: plans faults of its own.

    Raises:
        Violation: something happened that must not; the seed brings it about again.
    """
    began = time.process_time()
    rng = random.Random(f"{scenario.name} {seed}")
    cluster = Observed(scenario, random.Random(rng.random()))
    signals = StopSignals()

    def stop_driver() -> None:
        signals.number = signals.number or 15

    faults = Faults(
        cluster, random.Random(rng.random()), scenario.per_hour(), stop_driver, scenario.repaired_s
    )
    cluster.faults = faults
    if script is not None:
        script(cluster, faults)
    job, top = a_job(scenario), Path(tempfile.mkdtemp(prefix="convmlp-simulation-", dir=_memory()))
    folder, drivers, end = RunFolder(top, ""), 0, ""
    try:
        while not end:
            drivers += 1
            driver = Supervisor(
                job,
                False,
                folder,
                signals,
                threading.Event(),
                cluster=cluster,
                metrics=Untold(),  # type: ignore[arg-type]
            )
            cluster.on_start = lambda training, driver=driver: _check_members(cluster, driver, training)
            try:
                summary = driver.run()
                end = "finished"
                if summary.get("steps") != scenario.recipe.steps:
                    raise Violation(f"the summary of the run says {summary}")
            except DriverKilled:
                cluster.time.pass_(rng.uniform(35.0, 90.0))
                cluster.driver_dead = False
            except Interrupted:
                _check_left(cluster)
                cluster.time.pass_(rng.uniform(20.0, 60.0))
            except PlatformError as error:
                end = str(error).splitlines()[0]
            signals.number = None
            cluster.good = cluster.time.now
        wall = cluster.time.now
        faults.over = True
        _check_left(cluster)
        events = read_events(folder.events)
        _check_budgets(events, scenario)
        return _outcome(
            scenario, seed, end, wall, cluster, faults, events, drivers, time.process_time() - began
        )
    finally:
        shutil.rmtree(top)


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _check_members(cluster: SimulatedCluster, driver: Supervisor, training: SimulatedTraining) -> None:
    """Whoever was started and isn't among the driver's agents has been ended."""
    members = {id(member.actor) for member in driver.group.members}
    lost = [agent for agent in cluster.agents if agent.alive and not agent.ended and id(agent) not in members]
    if lost:
        raise Violation(f"attempt {training.start} begins; nobody knows of agent {lost[0].number} any more")


def _check_left(cluster: SimulatedCluster) -> None:
    cluster.time.to(max(cluster.head_back, cluster.time.now) + 60.0)
    cluster.check_nothing_left()


def _check_budgets(events: list[dict[str, Any]], scenario: Scenario) -> None:
    """The restarts of one driver within any 24 hours are no more than each cause may have."""
    times: dict[str, deque[float]] = {}
    cause = None
    for event in events:
        if event["kind"] == "driver_started":
            times, cause = {}, None
        elif event["kind"] == "attempt_ended":
            cause = event["cause"]
        elif event["kind"] == "attempt_started" and cause in CHARGED:
            limit = scenario.restarts.get(cause, -1)
            used = times.setdefault(cause, deque())
            used.append(event["time"])
            while used[0] <= event["time"] - 86400.0 - 600.0:
                used.popleft()
            if 0 <= limit < sum(at > event["time"] - 86400.0 + 600.0 for at in used):
                raise Violation(f"{len(used)} restarts for {cause} in 24 h, {limit} are allowed")
            cause = None


def _outcome(
    scenario: Scenario, seed: int, end: str, wall: float, cluster: SimulatedCluster, faults: Faults,
    events: list[dict[str, Any]], drivers: int, cpu: float,
) -> Outcome:  # fmt: skip
    running = [event for event in events if event["kind"] == "attempt_running"]
    slowest: dict[str, float] = {}
    for event in running:
        for part, seconds in event["seconds"].items():
            slowest[part] = max(slowest.get(part, 0.0), seconds)
    told = [
        {key: value for key, value in event.items() if key not in ("pid", "host", "hosts")}
        for event in events
    ]
    text = json.dumps([told, faults.trace], sort_keys=True)
    recipe, done = scenario.recipe, cluster.storage.committed
    return Outcome(
        scenario.name,
        seed,
        end,
        done * recipe.step_s / wall,
        wall,
        wall / 86400.0 * scenario.nodes,
        faults.injected,
        Counter(event["cause"] for event in events if event["kind"] == "attempt_ended"),
        sum(event["kind"] == "attempt_started" for event in events),
        drivers,
        [sum(event["seconds"].values()) for event in running[1:]],
        slowest,
        cluster.looks,
        cluster.reports,
        cluster.orphans,
        cluster.started,
        cpu,
        hashlib.sha256(text.encode()).hexdigest()[:12],
    )
