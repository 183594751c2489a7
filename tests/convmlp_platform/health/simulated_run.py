"""A training run in simulated time: ranks that compute, wait for one another, and stand still when told to."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from convmlp_platform.config.sections.resilience import HangSection
from convmlp_platform.health.hangs.hang_watch import Hang, HangWatch, RankView
from convmlp_platform.health.heartbeat.heartbeat import BeatState, Heartbeat
from convmlp_platform.health.heartbeat.phases import Phase

POLL_S = 0.5
BARRIER = -1.0
FOREVER = 1e9


@dataclass(frozen=True)
class Fault:
    """`rank` stands still in `phase` of its `step`, in its `micro_batch` where the phase has some."""

    rank: int
    step: int
    phase: Phase
    micro_batch: int = 0
    state: str = "S"


@dataclass(frozen=True)
class Setting:
    """A run: `runs_ahead` is NCCL (only the end of a step waits), `sharded` is FSDP (each micro-batch waits)."""

    world_size: int
    step_s: float = 0.4
    micro_batches: int = 3
    runs_ahead: bool = False
    sharded: bool = False
    jitter: float = 0.3
    stalls: float = 0.0
    evaluate_every: int = 20
    save_every: int = 15
    save_s: float = 1.0
    seed: int = 0
    start_s: float = 20.0


@dataclass
class Rank:
    """What the simulation knows of one rank."""

    number: int
    setting: Setting
    fault: Fault | None
    rng: random.Random
    now: float = 0.0
    beats: int = 0
    waits: bool = False
    stuck_since: float | None = None
    state: BeatState = field(default_factory=lambda: BeatState(0.0))

    def beat(self, phase: Phase, step: int, micro_batch: int = 0) -> None:
        self.state.beat(self.now, phase, step, micro_batch)
        self.beats += 1

    def work(self, seconds: float, phase: Phase, step: int, micro_batch: int = 0) -> Iterator[float]:
        """Lognormal, with a stall of 3 s now and then; for ever where the fault says so."""
        fault = self.fault
        here = (self.number, step, phase, micro_batch)
        if fault and here == (fault.rank, fault.step, fault.phase, fault.micro_batch):
            self.stuck_since = self.now
            yield FOREVER
        stall = 3.0 if self.rng.random() < self.setting.stalls else 0.0
        yield seconds * self.rng.lognormvariate(0.0, self.setting.jitter) + stall

    def run(self) -> Iterator[float]:
        """Yields how long it takes until the next thing, or BARRIER where it waits for all others."""
        s = self.setting
        yield s.start_s * self.rng.uniform(0.5, 1.0)
        for step in range(10**9):
            began = self.now
            yield from self._step(step)
            self.state.step_done(self.now, step + 1, self.now - began)
            self.beats += 1
            if (step + 1) % s.evaluate_every == 0:
                yield from self._evaluate(step + 1)
            if (step + 1) % s.save_every == 0:
                self.beat(Phase.CHECKPOINT, step + 1)
                yield BARRIER
                if self.number == 0:
                    yield from self.work(s.save_s, Phase.CHECKPOINT, step + 1)

    def _step(self, step: int) -> Iterator[float]:
        s, part = self.setting, self.setting.step_s / self.setting.micro_batches
        self.beat(Phase.DATA, step)
        yield from self.work(0.05 * s.step_s, Phase.DATA, step)
        self.beat(Phase.COMPUTE, step)
        for micro_batch in range(s.micro_batches):
            if s.sharded:
                yield BARRIER
            yield from self.work(part if step else 5 * part, Phase.COMPUTE, step, micro_batch)
            self.beat(Phase.COMPUTE, step, micro_batch + 1)
        if not s.runs_ahead:
            yield BARRIER
        self.beat(Phase.UPDATE, step)
        yield from self.work(0.01 * s.step_s, Phase.UPDATE, step)
        yield BARRIER

    def _evaluate(self, step: int) -> Iterator[float]:
        s = self.setting
        self.beat(Phase.EVALUATE, step)
        for micro_batch in range(4):
            if s.sharded:
                yield BARRIER
            yield from self.work(s.step_s / 4, Phase.EVALUATE, step, micro_batch)
            self.beat(Phase.EVALUATE, step, micro_batch + 1)
        yield BARRIER

    def view(self, now: float) -> RankView:
        b = self.state
        state = self.fault.state if self.fault and self.stuck_since is not None else "S"
        heartbeat = Heartbeat(
            self.number, self.setting.world_size, 100 + self.number, b.phase, b.step, b.micro_batch, "",
            self.beats, now - b.at, now, b.median_s or None, b.first_step_s or None, b.longest_gap_s or None,
            b.patience_s, b.progress,
        )  # fmt: skip
        return RankView(self.number, "node", heartbeat, state, now)

    def stacks(self) -> str:
        library = "/lib/job.py"
        if self.waits:  # for the gradients of others within backward, for all else in a collective of its own
            backward = self.state.phase is Phase.COMPUTE
            library = (
                "/lib/torch/autograd/graph.py" if backward else "/lib/torch/distributed/distributed_c10d.py"
            )
        return (
            f"process {self.number}\n\nPython stacks of 1 (python):\nCurrent thread 0x1 (most recent call first):\n"
            f'  File "{library}", line 1 in call\n  File "/run.py", line 2 in <module>\n'
        )


class Simulation:
    """Runs the ranks, and a watch that looks at them every half second."""

    def __init__(
        self, setting: Setting, fault: Fault | None = None, section: HangSection | None = None
    ) -> None:
        self.setting, self.now = setting, 0.0
        self.ranks = [
            Rank(number, setting, fault, random.Random(setting.seed * 1000 + number))
            for number in range(setting.world_size)
        ]
        self.watch = HangWatch(section or HangSection(), setting.world_size)
        self.rng = random.Random(setting.seed)
        self._runs = [rank.run() for rank in self.ranks]
        self._coming = [(0.0, rank.number) for rank in self.ranks]

    def advance(self, until: float) -> None:
        """Everything that happens up to this time."""
        while self._coming and self._coming[0][0] <= until:
            now, number = heapq.heappop(self._coming)
            self._go_on(number, now)
        self.now = until

    def _go_on(self, number: int, now: float) -> None:
        rank = self.ranks[number]
        rank.now = now
        wait = next(self._runs[number])
        if wait != BARRIER:
            heapq.heappush(self._coming, (now + wait, number))
            return
        rank.waits = True
        if all(other.waits for other in self.ranks):
            for other in self.ranks:
                other.waits = False
                # Released within milliseconds of one another.
                heapq.heappush(self._coming, (now + self.rng.uniform(0.0, 0.01), other.number))

    def look(self) -> Hang | None:
        """One poll: the ranks are seen one after another, up to 0.4 s apart."""
        base, views = self.now, []
        for delay, number in sorted(
            (self.rng.uniform(0.0, 0.4), number) for number in range(len(self.ranks))
        ):
            self.advance(base + delay)
            views.append(self.ranks[number].view(base + delay))
        self.advance(base + POLL_S)
        self.watch.update(views)
        return self.watch.check()

    def until_hang(self, limit_s: float) -> Hang | None:
        """The hang that is found first, None if there is none within so many simulated seconds."""
        end = self.now + limit_s
        while self.now < end:
            if (hang := self.look()) is not None:
                return hang.with_stacks({rank.number: rank.stacks() for rank in self.ranks})
        return None
