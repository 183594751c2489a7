"""Every single operation of a save fails once, in a folder and on an object store, while ranks go on training.

The ranks are real gloo ranks, and the saves are those of a run (`training.saving.Saver`).
"""

from __future__ import annotations

import errno
import functools
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from bucket import Bucket
from file_operations import Operation, watching

from convmlp_platform.checkpoints import collective_saver
from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer, SaveEvent
from convmlp_platform.checkpoints.checkpointer import Checkpointer, load
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.distributed import World, gathered, joined_world, on_main
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import OwnState
from convmlp_platform.errors import CheckpointError
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.ledger.ledger import LedgerHeader, LedgerWriter, claim_attempt
from convmlp_platform.training.saving import Saver
from convmlp_platform.training.step_plan import TrainState
from data_prep.storage import retry

FAULTY = 2
"""The step whose save meets the fault. One is committed before it."""

Request = tuple[str, str]
"""A kind of operation and the path it is for, relative to the run."""
Point = tuple[str, str, int]
"""The n-th operation of a kind on a path."""


@dataclass(frozen=True)
class Fault:
    """`late`: the operation is carried out, and then said to have failed (an answer that is lost)."""

    name: str
    error: Callable[[], OSError]
    late: bool = False


def _fault(name: str, number: int, late: bool = False) -> Fault:
    return Fault(name, functools.partial(OSError, number, name), late)


FAULTS = {
    "folder": [
        _fault("EIO", errno.EIO),
        _fault("ENOSPC", errno.ENOSPC),
        _fault("EACCES", errno.EACCES),
        _fault("EIO after all", errno.EIO, late=True),
    ],
    "object store": [
        _fault("500", errno.EREMOTEIO),
        _fault("503", errno.EBUSY),
        Fault("refused", lambda: ConnectionRefusedError(errno.ECONNREFUSED, "refused")),
        _fault("403", errno.EACCES),
        Fault("cut", lambda: ConnectionResetError(errno.ECONNRESET, "cut"), late=True),
    ],
}


@dataclass
class Storage:
    """Stands before all operations of this process on the checkpoints of runs below `root`, in the folder of each and
    in its object store alike."""

    root: Path
    hold: Callable[[Point], Fault | None] | None = None
    """Is asked before each operation on one run's checkpoints; it may block."""
    look: Callable[[], None] | None = None
    """Is called after each operation on one run's checkpoints."""
    run: str = ""
    _seen: Counter[Request] = field(default_factory=Counter)
    _looking: bool = False

    def __post_init__(self) -> None:
        (self.root / "folder").mkdir(exist_ok=True)

    def place(self, kind: str, run: str) -> str:
        """Where the checkpoints of a run lie."""
        return str(self.root / kind / run) if kind == "folder" else f"bucket://here{self.root}/{kind}/{run}"

    @contextmanager
    def watched(self) -> Iterator[None]:
        Bucket.handler = self._on_request
        try:
            with watching(self.root / "folder", self._on_operation, reads=True):
                yield
        finally:
            Bucket.handler = None

    def watch(
        self,
        run: str,
        hold: Callable[[Point], Fault | None] | None,
        look: Callable[[], None] | None = None,
    ) -> None:
        """Ask `hold` from now on, counting anew, and let `look` look."""
        self.run, self.hold, self.look, self._seen = run, hold, look, Counter()

    def _on_operation(self, operation: Operation, call: Callable[[], Any]) -> Any:
        path = operation.path.removeprefix("folder/")
        if operation.other:
            path += f" > {Path(operation.other).name}"
        return self._carry_out(operation.kind, path, lambda: None if operation.kind == "fsync" else call())

    def _on_request(self, method: str, path: str, call: Callable[[], Any]) -> Any:
        return self._carry_out(method, path.removeprefix(f"{self.root}/object store/"), call)

    def _carry_out(self, kind: str, path: str, call: Callable[[], Any]) -> Any:
        if self._looking:
            return call()
        fault = None
        if self.hold is not None and f"{path}/".startswith(f"{self.run}/"):
            request = kind, path.removeprefix(self.run)
            self._seen[request] += 1
            fault = self.hold((*request, self._seen[request]))
        answer = call() if fault is None or fault.late else None
        if self.look is not None:
            self._looking = True
            try:
                self.look()
            finally:
                self._looking = False
        if fault is not None:
            raise fault.error()
        return answer


@contextmanager
def impatient() -> Iterator[None]:
    """Storage is asked again at once, and by whoever saves."""
    patience, writer = retry.Patience, collective_saver.AsyncCheckpointer
    retry.Patience = functools.partial(patience, total=0.0)  # type: ignore[assignment,misc]
    collective_saver.AsyncCheckpointer = functools.partial(  # type: ignore[assignment,misc]
        AsyncCheckpointer, first_pause=0.002, longest_pause=0.02
    )
    try:
        yield
    finally:
        retry.Patience, collective_saver.AsyncCheckpointer = patience, writer  # type: ignore[misc]


class Run:
    """A run of all ranks: weights that say their step, and a saver."""

    def __init__(self, world: World, storage: Storage, kind: str, name: str) -> None:
        self.world, self.committed = world, list[int]()
        self.newest_seen, self.problems = 0, list[str]()
        self.step, rank, size = 0, world.rank, world.size
        self.weights = torch.zeros(2)
        own = OwnState(
            {"model": {"w": self.weights}, "optimizer": {"w/m": self.weights}},
            {
                group: {name: ((2 * size,), 2 * rank)}
                for group, name in (("model", "w"), ("optimizer", "w/m"))
            },
            frozenset(),
        )
        engine = SimpleNamespace(
            world=world, every_rank_writes=size > 1, updates=0, before_update=None, extra_state=dict,
            own_state=lambda: own if size > 1 else OwnState(own.groups, {}, frozenset()),
        )  # fmt: skip
        self.checkpointer = Checkpointer(storage.place(kind, name), keep=2)
        self.saver = Saver(
            self.checkpointer, cast(Engine, engine), PhaseClock(), lambda state: {}, self._on_save
        )
        ledger = storage.root / "ledgers" / kind / name
        attempt = on_main(world, lambda: claim_attempt(ledger))
        header = LedgerHeader(
            "id", "sha", "train", "webdataset", SampleOrder(64, 2, 5, 8, 16), 8, 2, size, rank, attempt
        )
        self.saver.open(LedgerWriter(ledger, header))

    def _on_save(self, event: SaveEvent) -> None:
        if event.kind == "committed":
            self.committed.append(event.step)

    def save(self, wait: bool = False) -> None:
        """A step, after which a save is due."""
        self.step += 1
        self.saver._settle()
        self.weights.fill_(self.step)
        self.saver.save(TrainState(self.step, 8 * self.step), wait=wait)
        self.saver.poll()

    def finish(self) -> None:
        """Wait for the save under way, as at the end."""
        self.saver.saves._watch(lambda saves: saves.done)
        self.saver.poll()

    def look(self) -> None:
        """What is committed can be read, at this very moment; by the one writer that commits and retires."""
        steps = self.checkpointer.store.steps()
        if self.newest_seen > max(steps, default=0):
            self.problems.append(f"step {self.newest_seen} was committed, then lost: {steps}")
        self.newest_seen = max(steps, default=0)
        for step in steps:
            try:
                self.checkpointer.verify(step)
            except CheckpointError as error:
                self.problems.append(str(error))

    def check(self) -> list[int]:
        """The committed steps, after reading each as it was saved; on rank 0."""
        steps = self.checkpointer.store.steps()
        for step in steps:
            self.checkpointer.verify(step)
            found = load(self.checkpointer.store.location(step))
            wanted = torch.full((2 * self.world.size,), float(step))
            assert torch.equal(found.tensors["model"]["w"], wanted), (step, found.tensors)
            assert torch.equal(found.tensors["optimizer"]["w/m"], wanted)
        return steps


def points_of(storage: Storage, world: World, kind: str, name: str) -> list[tuple[int, Point]]:
    """What each rank does in the save of `FAULTY` (collective); of asking for a part that isn't there yet the first
    time."""
    found: list[Point] = []

    def record(point: Point) -> None:
        if point[2] == 1 or "hand-in" not in point[1] or point[0] not in ("HEAD", "read open"):
            found.append(point)

    run = Run(world, storage, kind, name)
    run.save()
    run.finish()
    storage.watch(name, record)
    run.save()
    run.finish()
    storage.watch(name, None)
    assert on_main(world, run.check) == [1, 2]
    run.saver.close()
    return [(rank, point) for rank, points in enumerate(gathered(found)) for point in points]


def survive(
    storage: Storage, world: World, kind: str, name: str, rank: int, point: Point, fault: Fault
) -> bool:
    """Train on through one fault of one rank (collective); whether it came. A save is due after each step.

    Raises:
        AssertionError: no later save was committed, or a committed one is lost or torn.
    """
    left = [fault] if rank == world.rank else []
    run = Run(world, storage, kind, name)
    run.save()
    run.finish()
    look = run.look if world.is_main else None
    storage.watch(name, lambda here: left.pop() if here == point and left else None, look)
    run.save()
    until = time.monotonic() + 60
    while not on_main(world, lambda: bool(run.committed) and run.committed[-1] > FAULTY):
        assert on_main(world, lambda: time.monotonic() < until), "no later save is committed"
        run.save()
        time.sleep(0.001)
    storage.watch(name, None)
    run.save(wait=True)
    run.saver.close()

    def check() -> None:
        assert not run.problems, run.problems
        steps = run.check()
        assert steps[-1] == run.step and set(run.committed[-2:]) <= set(steps), (steps, run.committed)
        assert run.checkpointer.newest() == run.saver.checkpoint
        folder = storage.root / kind / name
        unfinished = [path.name for path in folder.rglob("*") if path.name.startswith((".", "hand-in"))]
        assert not unfinished, unfinished

    on_main(world, check)
    return any(gathered(rank == world.rank and not left))


def fail_everywhere(root: Path, every: int = 1, only: str = "") -> dict[str, int]:
    """Plant each fault at each operation of each rank (collective); how many combinations were run, by place.

    Args:
        every: run only each so many-th combination.
        only: of the operations that this pattern finds: `KIND PATH`.
    """
    counts = {}
    with joined_world(use_gpu=False) as world, impatient():
        storage = Storage(root)
        with storage.watched():
            for kind, faults in FAULTS.items():
                points = gathered(points_of(storage, world, kind, "dry"))[0]
                points = [found for found in points if re.search(only, " ".join(found[1][:2]))]
                chosen = list(itertools.product(points, faults))[::every]
                came = 0
                for number, ((rank, point), fault) in enumerate(chosen):
                    try:
                        came += survive(storage, world, kind, f"run-{number}", rank, point, fault)
                    except BaseException as error:
                        error.add_note(
                            f"{kind}, {world.size} writers: {fault.name} at {point} of rank {rank}"
                        )
                        raise
                # Some operations depend on which rank is first.
                assert came >= 0.9 * len(chosen), f"{came} of {len(chosen)} came"
                counts[f"{kind}, {world.size}"] = came
    return counts


def fail_everywhere_on_ranks(root: str, every: int = 1, only: str = "") -> dict[str, int]:
    """For `ranks.run_ranks`."""
    return fail_everywhere(Path(root), every, only)
