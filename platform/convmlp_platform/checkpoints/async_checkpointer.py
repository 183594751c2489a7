"""Saving while training goes on: a step waits for the snapshot only; a thread makes it durable."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer
from convmlp_platform.checkpoints.layout import Part, step_name
from convmlp_platform.checkpoints.snapshot import Snapshots
from convmlp_platform.checkpoints.stores.store import Chunks
from convmlp_platform.errors import CheckpointError, SupersededError

logger = logging.getLogger(__name__)

SaveState = Literal["done", "writing", "waiting", "refused", "failed"]
"""`done`: committed, or handed in. `waiting`: for the other writers' parts. `refused`: by the storage, to be tried
again soon. `failed`: an error that isn't the storage's has ended all saving."""

_SHORT_PAUSE = 5.0  # seconds between tries of a save that training waits for


@dataclass(frozen=True)
class SaveEvent:
    """The outcome of a save, or another fact about a checkpoint.

    `failed`: the storage refused the save; it is tried again until it succeeds or a newer save takes its place.
    `skipped`: the save before was still being written.
    `retired`: removed, since newer ones are kept. `discarded`: removed, since training went back to before it.
    `loaded`: training goes on from it; its commit may not have been told.
    """

    kind: Literal["committed", "failed", "skipped", "retired", "discarded", "loaded"]
    step: int
    location: str
    seconds: float = 0.0
    """From the snapshot to the commit, or to the failure."""
    message: str = ""
    digest: str = ""
    """Of the manifest of a checkpoint that was committed or loaded; empty where it isn't known."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What such a checkpoint says of itself (samples seen, epoch, attempt, ...)."""


@dataclass(frozen=True)
class _Job:
    step: int
    facts: Mapping[str, Any]
    files: Mapping[str, Chunks]
    size: int
    token: str
    started: float


class AsyncCheckpointer:
    """Saves in the background, one at a time.

    A save that the storage refuses is tried again with growing pauses; a newer one takes its place. What was
    committed before is never touched by any of this.

    Where several ranks write parts of one checkpoint, every rank has one of these, with its `part`, and all call
    `save` for the same steps: whether a save that falls due while the one before is still being written is begun or
    skipped must be decided for all, from all their `state`s (training.saving does).
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        part: Part = Part(),  # noqa: B008 (it is frozen)
        session: str | None = None,
        may_commit: Callable[[], None] = lambda: None,
        first_pause: float = 1.0,
        longest_pause: float = 60.0,
    ) -> None:
        """`session`: a name that all ranks of this attempt at the run share, and no other attempt; with one writer,
        the process's number does. `may_commit` raises SupersededError where this writer was replaced: as an error
        that isn't the storage's, it ends all saving. Pauses are in seconds."""
        self.checkpointer, self.part = checkpointer, part
        self.committed: str | None = None
        """The newest checkpoint that this object has committed (on part 0) or handed in."""
        self.failures = self.skipped = 0
        self._may_commit = may_commit
        self._session = session or f"process-{os.getpid()}"
        self._first_pause, self._longest_pause = first_pause, longest_pause
        self._snapshots = Snapshots(part)
        self._events: queue.SimpleQueue[SaveEvent] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._job: _Job | None = None
        self._told: _Job | None = None
        self._writing = self._closed = self._newer_waits = self._hurried = False
        self._written_at: float | None = None
        self._progress: dict[str, int] = {}
        self._failure: BaseException | None = None
        self._saves = 0
        self._thread: threading.Thread | None = None

    @property
    def state(self) -> SaveState:
        """State of the newest save."""
        with self._changed:
            if self._failure is not None and self._is_fault():
                return "failed"
            if self._job is None:
                return "done"
            if not self._writing:
                return "refused"
            return "writing" if self._written_at is None else "waiting"

    @property
    def waited_s(self) -> float:
        """Seconds that this writer has been waiting for the other writers' parts."""
        with self._changed:
            waits = self._writing and self._written_at is not None
            return time.monotonic() - self._written_at if waits and self._written_at is not None else 0.0

    @property
    def progress(self) -> int:
        """Grows with all that happens to the newest save: bytes that the storage takes (those of a try that gets less
        far than the one before don't count)."""
        with self._changed:
            return self._saves + sum(self._progress.values())

    @property
    def failure(self) -> BaseException | None:
        """The newest refusal of the storage of a save that isn't committed yet, or the error that ended all saving."""
        with self._changed:
            return self._failure

    def reserve(self, checkpoint: Checkpoint) -> None:
        """Have the memory for such a snapshot ready, so that the first save is as quick as the others."""
        with self._changed:
            if self._job is None:
                self._snapshots.reserve(checkpoint.tensors, checkpoint.slices)

    def save(self, checkpoint: Checkpoint, *, changing: Container[str] | None = None) -> None:
        """Take a snapshot and return; its fate comes as an event (`poll`). A save that is being written now is waited
        for.

        The tensors may lie on a GPU and may be views of live weights; they may change once this returns (on a GPU:
        by kernels queued after it). With `changing`, the names of those that a forward pass changes (BatchNorm's
        buffers), only these are copied before this returns, and the others must not change before `settle`.

        Raises:
            CheckpointError: this object is closed.
            Exception: the background thread hit an error that isn't the storage's.
        """
        location = self.checkpointer.store.location(checkpoint.step)
        with self._changed:
            self._raise_fault()
            if self._closed:
                raise CheckpointError(
                    f"checkpoint {location}: can't be saved after the checkpointer was closed"
                )
            self._newer_waits = True
            self._changed.wait_for(lambda: not self._writing)
            self._newer_waits = False
            self._raise_fault()
            self._saves += 1
            self._failure, self._written_at, self._progress = None, None, {}
            started = time.perf_counter()
            self._job = _Job(
                checkpoint.step,
                dict(checkpoint.facts),
                self._snapshots.take(checkpoint.tensors, checkpoint.slices, changing),
                self._snapshots.size(checkpoint.tensors),
                f"{self._session}.{self._saves}",
                started,
            )
            self._writing = True
            self._start()
            self._changed.notify_all()

    def skip(self, step: int) -> None:
        """Count and tell that the save of `step` isn't begun, because the one before is still being written."""
        self.skipped += 1
        message = "the checkpoint before is still being written"
        self._tell(SaveEvent("skipped", step, self.checkpointer.store.location(step), message=message))

    def settle(self) -> None:
        """Return when the last save's tensors may change: to be called before each optimizer update."""
        self._snapshots.settle()

    def poll(self) -> list[SaveEvent]:
        """Returns the events since the last call; it is for the thread that trains, which passes them to callbacks.

        Raises:
            Exception: the background thread hit an error that isn't the storage's.
        """
        self._raise_fault()
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def wait(self, timeout: float | None = None) -> str | None:
        """Return when the save under way is committed (at once where there is none): the newest committed location.

        Raises:
            CheckpointError: it isn't after `timeout` seconds; the message has the storage's last refusal.
            Exception: the background thread hit an error that isn't the storage's.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: self._job is None or self._is_fault(), timeout)
            self._raise_fault()
            if not done and self._job is not None:
                name, reason = step_name(self._job.step), self._failure or "the storage is slow"
                raise CheckpointError(f"checkpoint {name} isn't committed after {timeout:g} s: {reason}")
            return self.committed

    def hurry(self) -> None:
        """Try again now what was refused, and from now on after short pauses: training has nothing else to wait for."""
        with self._changed:
            self._longest_pause = min(self._longest_pause, _SHORT_PAUSE)
            self._hurried = True
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> str | None:
        """`wait`, and end the thread either way. A save that was waiting to be tried again is given up after it.

        Raises: as `wait`.
        """
        try:
            return self.wait(timeout)
        finally:
            self.stop()

    def stop(self) -> None:
        """End the thread, once it has ended the try under way. A save that isn't committed is given up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None and not self._writing:
            self._thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpointer", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._writing or self._closed)
                if not self._writing:
                    return
                job = self._job
            try:
                if job is not None:
                    self._persist(job)
            except BaseException as error:
                if not isinstance(error, SupersededError):
                    logger.exception("the checkpointer's thread failed")
                with self._changed:
                    self._failure, self._writing, self._closed = error, False, True
                    self._changed.notify_all()
                return

    def _persist(self, job: _Job) -> None:
        """Write a job until it is committed, another takes its place, or all is closed."""
        pause = self._first_pause
        while True:
            try:
                self.checkpointer.write(
                    job.step,
                    job.facts,
                    job.files,
                    expected_bytes=job.size,
                    part=self.part,
                    token=job.token,
                    may_commit=self._may_commit,
                    on_progress=self._on_progress,
                    on_written=self._on_written,
                    # A part that never comes must not keep a newer save waiting.
                    cancelled=lambda: self._closed or self._newer_waits,
                    on_commit=lambda location, digest: self._committed(job, location, digest),
                    on_retired=self._retired,
                )
            except SupersededError:
                raise
            except CheckpointError as error:
                if not self._may_try_again(job, error, pause):
                    return
                pause = min(2 * pause, self._longest_pause)
            else:
                self._committed(job, self.checkpointer.store.location(job.step))
                with self._changed:
                    self._job, self._writing, self._failure = None, False, None
                    self._changed.notify_all()
                return

    def _on_progress(self, name: str, written: int) -> None:
        with self._changed:
            self._progress[name] = max(written, self._progress.get(name, 0))

    def _on_written(self) -> None:
        with self._changed:
            self._written_at = time.monotonic()

    def _committed(self, job: _Job, location: str, digest: str = "") -> None:
        with self._changed:
            if self._told is job:
                return
            self._told, self.committed = job, location
            seconds = time.perf_counter() - job.started
            self._tell(SaveEvent("committed", job.step, location, seconds, digest=digest, facts=job.facts))

    def _retired(self, step: int) -> None:
        self._tell(SaveEvent("retired", step, self.checkpointer.store.location(step)))

    def _may_try_again(self, job: _Job, error: CheckpointError, pause: float) -> bool:
        """Tell of a failure and pause. False when a newer save has come, or all is closed."""
        with self._changed:
            self.failures += 1
            self._failure, self._writing = error, False
            location, seconds = self.checkpointer.store.location(job.step), time.perf_counter() - job.started
            message = f"{error}; training goes on, next try in {pause:g} s"
            self._tell(SaveEvent("failed", job.step, location, seconds, message))
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._job is not job or self._closed or self._hurried, pause)
            self._hurried = False
            if self._job is not job or self._closed:
                return False
            self._writing, self._written_at = True, None
            return True

    def _tell(self, event: SaveEvent) -> None:
        self._events.put(event)
        if event.kind in ("failed", "skipped"):
            logger.warning("checkpoint %s %s: %s", step_name(event.step), event.kind, event.message)

    def _is_fault(self) -> bool:
        """An error that trying again can't cure."""
        return isinstance(self._failure, SupersededError) or not isinstance(
            self._failure, CheckpointError | None
        )

    def _raise_fault(self) -> None:
        if self._failure is not None and self._is_fault():
            raise self._failure
