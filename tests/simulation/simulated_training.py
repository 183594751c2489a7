"""The training processes of one attempt, as far as supervision can see them: they start together, go through steps
together, save, and stop together as soon as one of them does."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from virtual_time import EPOCH, VirtualTime

from convmlp_platform.health.heartbeat.heartbeat import Heartbeat
from convmlp_platform.health.heartbeat.phases import Phase
from convmlp_platform.launch.workers.worker_report import Exit

GIVES_UP_S = 120.0
"""So long a storage that fails is asked again."""


@dataclass(frozen=True)
class Recipe:
    """A run at full strength: `steps` of `step_s`, saved every `save_every` in `save_s`.

    `load_s`: until the processes that have found each other have loaded the newest checkpoint.
    """

    workers: int
    steps: int
    step_s: float
    save_every: int
    save_s: float = 20.0
    stall_s: float = 0.4
    spawn_s: float = 1.0
    load_s: float = 20.0
    first_step_s: float = 15.0

    @property
    def ideal_s(self) -> float:
        """Seconds of all its steps, were there nothing else."""
        return self.steps * self.step_s


@dataclass
class Storage:
    """Checkpoints: the newest one's step. Between `outages` (begin, end) it works."""

    committed: int = 0
    outages: list[tuple[float, float]] = field(default_factory=list)

    def works_from(self, time: float) -> float:
        """The first moment from `time` on at which it works."""
        for begin, end in self.outages:
            if begin <= time < end:
                time = end
        return time


@dataclass(eq=False)
class SimulatedProcess:
    """One rank. `exit`: how it ended. `stands`: why it makes no progress though it lives."""

    rank: int
    forked: float
    wake: Callable[[], None]
    begun: float = float("inf")
    exit: Exit | None = None
    stands: str = ""
    marks: dict[str, float] | None = None

    @property
    def lives(self) -> bool:
        return self.exit is None


class SimulatedTraining:
    """The processes of one attempt. Its steps aren't simulated one by one: they are known from the time that passed."""

    def __init__(
        self, start: int, world: int, recipe: Recipe, time: VirtualTime, storage: Storage, rng: random.Random
    ):
        self.start, self.world, self.recipe, self.time, self.storage, self.rng = (
            start,
            world,
            recipe,
            time,
            storage,
            rng,
        )
        self.processes: dict[int, SimulatedProcess] = {}
        self.joined = self.loaded = self.stepped = float("inf")
        self.first = 0
        self.broken = self.stopping = False
        self._frozen = float("inf")
        self._segment = (float("inf"), 0, 1.0)
        """Since when, from which step, and how long a step takes."""
        self._slowest = 1.0
        self._finish = 0
        self._beat: tuple[float, Heartbeat] | None = None

    # -- life ----------------------------------------------------------------------------------------------------------

    def fork(self, rank: int, slow: float, wake: Callable[[], None]) -> SimulatedProcess:
        """Start the process of a rank."""
        process = self.processes[rank] = SimulatedProcess(rank, self.time.now, wake)
        spawn = self.recipe.spawn_s * slow * self.rng.uniform(0.8, 1.6)
        self.time.after(spawn, lambda: self._begin(process))
        return process

    def _begin(self, process: SimulatedProcess) -> None:
        process.begun = self.time.now
        if len(self.processes) < self.world or self.broken:
            return
        if all(one.begun <= self.time.now and one.lives for one in self.processes.values()):
            self.joined = self.time.now + 1.0 + 0.002 * self.world
            self.time.at(self.joined, self._load)

    def _load(self) -> None:
        if self.broken:
            return
        at = self.storage.works_from(self.time.now)
        if at - self.time.now > GIVES_UP_S:
            self.time.after(
                GIVES_UP_S,
                lambda: self._raise_all("StorageUnreachable: no checkpoint can be read", "storage"),
            )
            return
        self.time.at(at + self.recipe.load_s, self._loaded)

    def _loaded(self) -> None:
        if self.broken:
            return
        self.loaded, self.first = self.time.now, self.storage.committed
        self.time.after(self.recipe.first_step_s, self._stepped)

    def _stepped(self) -> None:
        if self.broken:
            return
        self.stepped = self.time.now
        self._segment = (self.time.now, self.first + 1, self._each())
        self._wake_all()
        self._plan()
        if self.stopping:
            self._save_and_stop()

    def _each(self) -> float:
        recipe = self.recipe
        return (
            recipe.step_s * recipe.workers / self.world * self._slowest + recipe.stall_s / recipe.save_every
        )

    def _plan(self) -> None:
        """Its end, and its first save that will fail, as things are now."""
        self._finish += 1
        number = self._finish
        since, step, each = self._segment
        end = since + max(0, self.recipe.steps - step) * each
        self.time.at(
            end, lambda: number == self._finish and not self.broken and not self.stopping and self._finished()
        )
        for begin, until in self.storage.outages:
            saves = self._next_save(max(begin - self.recipe.save_s, self.time.now))
            if until > self.time.now and saves + GIVES_UP_S < until:
                fails = max(saves, begin) + GIVES_UP_S
                self.time.at(
                    fails, lambda: number == self._finish and not self.stopping and self._save_failed()
                )
                break

    def _next_save(self, time: float) -> float:
        since, step, each = self._segment
        at = self.step_at(time)
        coming = (at // self.recipe.save_every + 1) * self.recipe.save_every
        return since + (coming - step) * each

    def _finished(self) -> None:
        self.settle()
        at = self.storage.works_from(self.time.now)
        self.time.at(at + self.recipe.save_s, self._leave_finished)

    def _leave_finished(self) -> None:
        if not self.broken:
            self.storage.committed = self.recipe.steps
            self._end_all(
                {
                    "kind": "finished",
                    "step": self.recipe.steps,
                    "reason": None,
                    "summary": {"steps": self.recipe.steps},
                }
            )

    def _save_failed(self) -> None:
        if not self.broken and not self.stopping:
            self.raise_in(0, "StorageUnreachable: the checkpoint can't be written", "storage")

    def replan(self) -> None:
        """The storage's outages are others now."""
        if self.stepped <= self.time.now and not self.broken:
            self._plan()

    # -- what happens to it --------------------------------------------------------------------------------------------

    def slow_down(self, factor: float) -> None:
        """The slowest of its ranks takes so many times as long as it should."""
        if factor == self._slowest:
            return
        self._slowest = factor
        if self.stepped <= self.time.now and not self.broken:
            self.settle()
            self._segment = (self.time.now, self.step_at(self.time.now), self._each())
            self._plan()

    def stop(self) -> None:
        """A rank was told to save and stop; they all do, after their step."""
        if self.stopping or self.broken:
            return
        self.stopping = True
        if self.stepped <= self.time.now:
            self._save_and_stop()

    def _save_and_stop(self) -> None:
        begin = self.time.now + self._segment[2]
        works = self.storage.works_from(begin)
        self._frozen = begin  # its steps end here
        if works - begin > GIVES_UP_S:
            self.time.at(
                begin + GIVES_UP_S,
                lambda: self.broken or self.raise_in(0, "StorageUnreachable: no", "storage"),
            )
            return
        self.time.at(works + self.recipe.save_s, self._stopped)

    def _stopped(self) -> None:
        if not self.broken:
            step = self.step_at(self.time.now)
            self.storage.committed = max(step, self.storage.committed)
            self._end_all({"kind": "stopped", "step": step, "reason": "SIGTERM"})

    def hang(self, rank: int) -> None:
        """A rank stands still, and the others wait for it."""
        if rank in self.processes:
            self.processes[rank].stands = "hangs"
            self._break()

    def kill(self, process: SimulatedProcess, number: int = signal.SIGKILL, *, prompt: bool = True) -> None:
        """A process dies; of the others some notice and fail, some stand still (`prompt`: none does)."""
        if process.lives:
            process.exit = Exit(-number, EPOCH + self.time.now, None, False, ())
            process.wake()
            self._break()
            if prompt:
                self._notice()

    def raise_in(self, rank: int, headline: str, cause: str) -> None:
        """A rank raises an error of its own."""
        if rank in self.processes and self.processes[rank].lives:
            self._fail(self.processes[rank], headline, cause, peer=False)
            self._break()
            self._notice()

    def cut_off(self) -> None:
        """One of its ranks can't be reached any more: nobody is told so."""
        self._break()

    def _raise_all(self, headline: str, cause: str) -> None:
        if self.broken:
            return
        self._break()
        for process in self.processes.values():
            self._fail(process, headline, cause, peer=False)

    def _notice(self) -> None:
        """The connections to a rank that is gone are closed: most of the others raise, in three lots."""
        lots: list[list[SimulatedProcess]] = [[], [], []]
        for process in self.processes.values():
            if process.lives and not process.stands and self.rng.random() < 0.9:
                lots[self.rng.randrange(3)].append(process)
        for lot in lots:
            self.time.after(self.rng.uniform(0.05, 2.5), lambda lot=lot: self._lose_peer(lot))

    def _lose_peer(self, lot: list[SimulatedProcess]) -> None:
        for process in lot:
            if process.lives:
                self._fail(process, "RuntimeError: Connection closed by peer", "hardware", peer=True)

    def _fail(self, process: SimulatedProcess, headline: str, cause: str, *, peer: bool) -> None:
        outcome = {
            "kind": "error", "step": 0, "reason": None, "cause": cause, "peer": peer, "headline": headline,
            "message": headline, "platform": None, "traceback": "", "details": {},
        }  # fmt: skip
        self._end(process, 1, outcome)

    def _end_all(self, outcome: dict[str, Any]) -> None:
        self.settle()
        self._break()
        for process in self.processes.values():
            self._end(process, 0, outcome)

    def _end(self, process: SimulatedProcess, code: int, outcome: dict[str, Any]) -> None:
        if process.lives:
            process.exit = Exit(code, EPOCH + self.time.now, outcome, False, ())
            process.wake()

    def _wake_all(self) -> None:
        for process in self.processes.values():
            process.wake()

    # -- how far it is -------------------------------------------------------------------------------------------------

    def _break(self) -> None:
        if not self.broken:
            self.settle()
            self.broken, self._frozen = True, self.time.now

    def step_at(self, time: float) -> int:
        """Steps that are done then."""
        since, step, each = self._segment
        if time < since:
            return self.first
        return min(self.recipe.steps, step + int((min(time, self._frozen) - since) / each + 1e-9))

    def settle(self) -> None:
        """Take note of what is saved by now."""
        since, step, each = self._segment
        if self.broken or self.time.now < since:
            return
        save = self.step_at(self.time.now) // self.recipe.save_every * self.recipe.save_every
        while save > max(self.storage.committed, step - 1):
            begun = since + (save - step) * each
            works = max(self.storage.works_from(begun), self.storage.works_from(begun + self.recipe.save_s))
            if works + self.recipe.save_s <= self.time.now:
                self.storage.committed = save
                return
            save -= self.recipe.save_every

    @property
    def is_running(self) -> bool:
        """Whether it goes through steps, and nobody has told it to stop."""
        return self.stepped <= self.time.now and not self.broken and not self.stopping

    @property
    def starts(self) -> bool:
        """Whether it is on its way to its first step, and nothing is in the way."""
        return not self.broken and self.stepped > self.time.now and len(self.processes) == self.world

    def marks(self, process: SimulatedProcess) -> dict[str, float]:
        """As an agent reads them from its process's file."""
        if process.marks is not None:
            return process.marks
        now = self.time.now
        times = {
            "begun": process.begun,
            "joined": self.joined,
            "loaded": self.loaded,
            "stepped": self.stepped,
        }
        found = {name: at - process.forked for name, at in times.items() if at <= now}
        if self.loaded <= now:
            found["step"] = self.first
        if self.stepped <= now:  # all that there will be
            process.marks = found
        return found

    def heartbeat(self, process: SimulatedProcess) -> Heartbeat | None:
        """As an agent reads it now."""
        now = self.time.now
        if process.begun > now:
            return None
        if self._beat is None or self._beat[0] != now or process.stands:
            beat = self._heartbeat(process)
            if process.stands:
                return beat
            self._beat = (now, beat)
        return self._beat[1]

    def _heartbeat(self, process: SimulatedProcess) -> Heartbeat:
        now, (since, _, each) = self.time.now, self._segment
        until = min(now, self._frozen)
        if self.stepped > until:
            phase, step, begun, part = Phase.START, self.first, min(self.joined, self.loaded, now), 0
        else:
            phase, step = Phase.COMPUTE, self.step_at(now)
            begun = until - (until - since) % each
            part = 1 if process.stands else 2 if self.broken else 1
        beats = 10 * step + part
        return Heartbeat(
            process.rank, self.world, 1000 + process.rank, phase, step, part, "", beats, max(0.0, now - begun),
            now - process.begun, each, self.recipe.first_step_s, None, 0.0, (2 * step, True, int(phase), False, part),
        )  # fmt: skip
