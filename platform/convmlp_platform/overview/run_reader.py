"""Reads what is on disk of a run, again and again, each time only what is new: it never writes, locks or waits.

A file is read again when its size, time or number has changed; of the journal, which may have a million lines, the end
is read once, and from there on what is appended.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from convmlp_platform.checkpoints.layout import FOLDER
from convmlp_platform.checkpoints.stores.local_store import LocalStore
from convmlp_platform.config.identity import IDENTITY_NAME, read_identity
from convmlp_platform.errors import PlatformError
from convmlp_platform.goodput.account import Goodput, account
from convmlp_platform.goodput.goodput_log import RANK_0, GoodputFile, read_log
from convmlp_platform.health.events import read_events
from convmlp_platform.runs.lease import run_lease
from convmlp_platform.runs.run_folder import JOB_NAME, RunFolder, stored_job
from convmlp_platform.runs.trial_record import Ended, read_end
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointRetired,
    MetricsRecord,
    Status,
    Tags,
    read_chunk,
    tail_start,
)
from convmlp_platform.training.evaluation.evaluation_record import Evaluation, read_evaluations
from convmlp_platform.training.guard.incidents import Incident, read_incidents
from data_prep.storage.json_files import DamagedJson
from data_prep.storage.locks import LockView

Value = TypeVar("Value")

PAGE_BYTES, ROW_BYTES = 1 << 18, 1 << 15
"""Of a journal's end, as much as a page of a run takes, or a row."""
_ACCOUNT_SHARE = 0.02
"""Of the time, for working the account of a long run out again."""


class JournalEnd:
    """The end of a run's journal, and what is appended to it."""

    def __init__(self, path: Path, max_bytes: int = PAGE_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._forget()

    def _forget(self) -> None:
        self.training: deque[MetricsRecord] = deque(maxlen=200)
        """The newest means of training steps, oldest first."""
        self.evaluations: deque[MetricsRecord] = deque(maxlen=200)
        self.committed: dict[int, CheckpointCommitted] = {}
        """Checkpoints that were committed and not removed, by step."""
        self.status: Status | None = None
        self.goodput: float | None = None
        """0..1, as training told it when it ended, by the logs of all ranks."""
        self.time: float | None = None
        """Of the newest record, unix seconds."""
        self.damaged = 0

    def read(self) -> None:
        """Take in what is new.

        Raises:
            OSError: it can't be read.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return
        file = (found.st_dev, found.st_ino)
        if file != self._file or found.st_size < self._offset:  # another one, or cut off
            self._forget()
            self._file, self._offset = file, tail_start(self._path, self._max_bytes)
        while self._offset < found.st_size:
            chunk = read_chunk(self._path, self._offset)
            if chunk.end == self._offset:  # a line that is being written
                return
            self._offset, self.damaged = chunk.end, self.damaged + chunk.damaged
            for record in chunk.records:
                self._take(record)

    def _take(self, record: Any) -> None:
        self.time = record.time / 1000
        match record:
            case MetricsRecord() if "train/loss" in record.values:
                self.training.append(record)
            case MetricsRecord() if any(name.startswith("eval/") for name in record.values):
                self.evaluations.append(record)
            case CheckpointCommitted():
                self.committed[record.step] = record
            case CheckpointRetired():
                self.committed.pop(record.step, None)
            case Status():
                self.status = record
            case Tags() if "goodput" in record.values:
                self.goodput = _share(record.values["goodput"])


class _Cached(Generic[Value]):
    """The content of a file or folder, read again when it has changed."""

    def __init__(self, path: Path, read: Callable[[Path], Value]) -> None:
        self.path, self._read = path, read
        self._signature: tuple[int, ...] | None = None
        self._value: list[Value] = []

    def get(self) -> Value:
        """Raises what reading raises."""
        signature = _signature(self.path)
        if not self._value or signature != self._signature:
            self._value, self._signature = [self._read(self.path)], signature
        return self._value[0]


class RunReader:
    """One run's records. What can't be read is put into `problems`, with the value of one that isn't there.

    Args:
        journal_bytes: how much of the journal's end is read at first.
    """

    def __init__(self, run: Path, journal_bytes: int = PAGE_BYTES) -> None:
        self.run = run
        folder = RunFolder(run, "")
        self.problems: list[str] = []
        self.refused = False
        """Whether some of it may not be read by this user."""
        self.journal = JournalEnd(journal_path(run), journal_bytes)
        self._identity = _Cached(run / IDENTITY_NAME, lambda _: _unless_missing(read_identity, run))
        self._job = _Cached(run / JOB_NAME, lambda _: _unless_missing(stored_job, run))
        self._events = _Cached(folder.events, read_events)
        self._evaluations = _Cached(folder.evaluations, read_evaluations)
        self._incidents = _Cached(folder.incidents, read_incidents)
        self._steps = _Cached(run / FOLDER, lambda path: LocalStore(path).steps())
        self._goodput = folder.goodput
        self._logs: dict[Path, _Cached[GoodputFile | None]] = {}
        self._account: tuple[tuple[int, ...], Goodput] | None = None
        self._due = 0.0
        self._lease_mark: tuple[str, int] | None = None
        self._lease_heard: float | None = None
        self.read()

    def read(self) -> None:
        """Take in what is new, and say again what can't be read."""
        self.problems, self.refused = [], False
        self.identity: dict[str, Any] | None = self._take(self._identity.get, None)
        self.job: dict[str, Any] = self._take(self._job.get, None) or {}
        self.events: list[dict[str, Any]] = self._take(self._events.get, [])
        self.evaluations: list[Evaluation] = self._take(self._evaluations.get, [])
        self.incidents: list[Incident] = self._take(self._incidents.get, [])
        self.checkpoints: list[int] = self._take(self._steps.get, [])
        self.logs: list[GoodputFile] = self._take(self._read_logs, [])
        self.lease: LockView | None = self._take(self._read_lease, None)
        self.end: Ended | None = read_end(self.run)
        self._take(self.journal.read, None)
        if self.journal.damaged:
            self.problems.append(f"tracking/journal.jsonl: {self.journal.damaged} damaged lines")

    def account(self) -> Goodput | None:
        """Where the time of its workers went, by rank 0's log; None where there is no record of time.

        Of a run that goes on it isn't of this very moment: working it out takes longer the longer the run is.
        """
        if not self.logs and not self.events:
            return None
        known = (len(self.events), *(len(file.lines) for file in self.logs), *_newest(self.logs))
        now = time.monotonic()
        if self._account is None or (known != self._account[0] and now >= self._due):
            self._account = known, account(self.logs, self.events)
            self._due = now + (time.monotonic() - now) / _ACCOUNT_SHARE
        return self._account[1]

    def _take(self, read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return read()
        except (OSError, DamagedJson, PlatformError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            self.refused |= isinstance(cause, PermissionError)
            self.problems.append(_told(error).replace(f"{self.run}/", ""))
            return otherwise

    def _read_logs(self) -> list[GoodputFile]:
        """Rank 0's of all attempts: the other ranks march in step with it."""
        try:
            attempts = list(self._goodput.iterdir())  # a glob finds nothing in a folder that may not be read
        except FileNotFoundError:
            return []
        found = []
        for path in (attempt / RANK_0 for attempt in attempts if attempt.name.startswith("attempt-")):
            if path.exists():
                log = self._logs.setdefault(path, _Cached(path, read_log)).get()
                found += [] if log is None else [log]
        return sorted(found, key=lambda file: file.header.attempt)

    def _read_lease(self) -> LockView | None:
        """Renewals that were seen from here count by this machine's clock, whatever the storage's says."""
        view = run_lease(self.run).view()
        if view is None or view.lives is not None:
            return view
        if self._lease_mark not in (None, view.mark):
            self._lease_heard = time.time()
        self._lease_mark = view.mark
        return view if self._lease_heard is None else replace(view, renewed=self._lease_heard)


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unless_missing(read: Callable[[Path], dict[str, Any]], run: Path) -> dict[str, Any] | None:
    """The content of a file that the run doesn't have from its first moment on; None where it isn't there."""
    try:
        return read(run)
    except FileNotFoundError:
        return None
    except PlatformError as error:
        if isinstance(error.__context__, FileNotFoundError):
            return None
        raise


def _newest(logs: Sequence[GoodputFile]) -> tuple[int, ...]:
    """Changes with each line of the newest log, which are written over each other."""
    return (int(logs[-1].lines[-1].time * 1e3),) if logs and logs[-1].lines else ()


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{os.fspath(error.filename or '')}: {error.strerror or error}".lstrip(": ")
    return str(error)


def _share(text: str) -> float | None:
    """Of "51.37 %"; None where it is none."""
    try:
        return float(text.removesuffix("%")) / 100
    except ValueError:
        return None
