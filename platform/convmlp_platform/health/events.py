"""The events of a run, as its driver saw them: RUN/events.jsonl, one line of JSON an event.

    driver_started {host, pid, num_workers, min_workers}
    attempt_started {start, world_size, hosts, reason}
    attempt_running {start, step, seconds {detect, stop, place, spawn, join, load, first_step}}: its first step is done
    attempt_ended {start, cause, rank, host, phase, step, message, stalled_s, incident}
    driver_ended {exit_code}: 128 + N where signal N told it to stop

Every event has `time`, unix seconds by the driver's clock, and `kind`. It needs no torch.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data_prep.storage.files import sync_folder
from data_prep.storage.json_files import Count, Seconds, Workers, parse_json_lines

logger = logging.getLogger(__name__)


class RunEvents:
    """The writing end. An event outlives the process that wrote it; a full disk costs events, not the run. `now`: unix
    seconds."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path, self._now = path, now

    def append(self, kind: str, **fields: Any) -> None:
        """Add an event of now. Values that JSON can't say are written as text. Raises nothing: it warns."""
        event = {"time": self._now(), "kind": kind} | fields
        logger.debug("%s %s", kind, fields)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, json.dumps(event, default=str))
        except OSError as error:
            logger.warning("%s: event %s can't be written: %s", self.path, kind, error)


def append_line(path: Path, text: str, *, durable: bool = False) -> None:
    """Add a line in one write; what a killed writer left of a line before it becomes a line of its own.

    Args:
        durable: the line outlives a power cut, too.

    Raises:
        OSError: the storage refuses.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * torn + text.encode() + b"\n")
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if durable:
        sync_folder(path.parent)


class _Event(BaseModel):
    """The types of what is read again; an event may have more."""

    model_config = ConfigDict(extra="allow")

    time: Seconds
    kind: str
    start: Count | None = None
    num_workers: Workers | None = None
    world_size: Workers | None = None
    seconds: dict[str, Seconds] | None = None
    stalled_s: Seconds | None = None
    cause: str | None = None
    rank: int | None = None
    host: str | None = None
    phase: str | None = None
    step: int | None = None
    message: str | None = None
    incident: str | None = None


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events in the order in which they were written; none where there is no file. Torn and damaged lines are
    left out.

    Raises:
        OSError: it can't be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    events = parse_json_lines(content, _Event)
    return [event.model_dump(exclude_unset=True) for event in events if event is not None]


def signal_name(number: int) -> str:
    """SIGKILL, or `signal 40`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
