"""The heartbeat of a rank: a small file that the rank writes by memory map and anyone on the node may read.

Writing is a few memory operations, no system call, so neither a full disk nor a stuck one delays training, and the
file says what the process was last doing when it can no longer be asked. Keep it on a memory file system (/dev/shm):
the first write after the kernel has flushed a page of a disk's file may wait for that disk.

The state of a rank as its beats show it: how far it is among its peers, and how long its steps usually take.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from convmlp_platform.health.heartbeat.phases import Phase

_STEPS = 51
# The first step of a process compiles and allocates; of the next ones two may be lucky.
_FEWEST_STEPS = 3


class BeatState:
    """The progress of a rank. Times are in seconds of one monotonic clock; 0.0 where nothing is known yet.

    `progress` orders the ranks of one attempt, which all go through the same phases: an era begins with each step and
    with its end (evaluation and saves lie between the two), `reached` is the furthest phase of the era, `back` says
    that it was left again. Saves are the exception: some ranks only have something to save, at any place of a step. A
    rank that saves counts as behind the others of its era, because these may wait for it and it for none of them.
    """

    __slots__ = (
        "_begun", "_gap_before", "_recent", "_sorted", "at", "back", "era", "first_step_s", "gap_s", "median_s",
        "micro_batch", "patience_s", "phase", "reached", "step",
    )  # fmt: skip

    def __init__(self, now: float) -> None:
        self.at, self.phase, self.step, self.micro_batch = now, Phase.START, 0, 0
        self.era, self.reached, self.back = 0, Phase.START, False
        self.median_s = self.first_step_s = self.gap_s = self._gap_before = self.patience_s = 0.0
        self._begun: float | None = None
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def longest_gap_s(self) -> float:
        """Between two beats of this evaluation or the one before."""
        return max(self.gap_s, self._gap_before)

    @property
    def progress(self) -> tuple[int, int, int, int, int]:
        """The least of several ranks is behind."""
        return self.era, self.phase is not Phase.CHECKPOINT, self.reached, self.back, self.micro_batch

    def beat(self, now: float, phase: Phase, step: int, micro_batch: int) -> None:
        """The rank is in `phase` and not stuck."""
        if phase is not self.phase:
            self._change(now, phase)
        elif phase is Phase.EVALUATE and now - self.at > self.gap_s:
            self.gap_s = now - self.at
        self.at, self.phase, self.step, self.micro_batch = now, phase, step, micro_batch

    def _change(self, now: float, phase: Phase) -> None:
        if self._begun is None:
            self._begun = now
        if phase is Phase.EVALUATE:
            self._gap_before, self.gap_s = self.gap_s, 0.0
        if phase is Phase.DATA and self.reached is not Phase.DATA:
            self.era, self.reached = self.era + 1, phase
        elif phase > self.reached and phase is not Phase.CHECKPOINT:
            self.reached = phase
        self.back = phase < self.reached

    def step_done(self, now: float, step: int, seconds: float) -> None:
        """`step` steps are done, the last in `seconds`."""
        self.at, self.step, self.micro_batch = now, step, 0
        self.era, self.reached, self.back = self.era + 1, self.phase, False
        if not self.first_step_s:
            self.first_step_s = now - (now if self._begun is None else self._begun)
            return
        self._recent.append(seconds)
        insort(self._sorted, seconds)
        if len(self._recent) > _STEPS:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        if len(self._sorted) >= _FEWEST_STEPS:
            self.median_s = self._sorted[len(self._sorted) // 2]


NOTE_BYTES = 200
"""Bytes that a note may take in UTF-8; longer notes are cut."""

# Written once: magic, rank, world size, process id, time of the start.
_HEAD = struct.Struct("<8siiid")
_MAGIC = b"cmlpbt2\n"
# Written at each beat: number of the beat, time, phase, step, micro-batch; then what BeatState derives; the note.
_BEAT = struct.Struct(f"<QdiqqQ2i4dH{NOTE_BYTES}s")
_SLOT = 384
_SLOTS = (64, 64 + _SLOT)
_SIZE = 64 + 2 * _SLOT


@dataclass(frozen=True)
class Heartbeat:
    """The work of a rank at its last beat, and how long ago that was.

    Args:
        step, micro_batch, note: as they were given to `PhaseClock.enter`.
        beats: how many there were; it grows while the rank goes on.
        stalled_s, running_s: seconds since the last beat, and since the start, by this node's monotonic clock, which
            stands still while the machine sleeps.
        median_step_s: of the last ~50 steps; None until a few are done.
        first_step_s: from the first phase after the start to the end of the first step; None until then.
        longest_gap_s: between two beats of the last two evaluations; None before there was one.
        patience_s: how long the data may make the rank wait beyond that: a remote storage that is asked again.
        progress: grows with what the rank has done; of the ranks of one attempt the least is behind.
    """

    rank: int
    world_size: int
    pid: int
    phase: Phase
    step: int
    micro_batch: int
    note: str
    beats: int
    stalled_s: float
    running_s: float
    median_step_s: float | None
    first_step_s: float | None
    longest_gap_s: float | None
    patience_s: float
    progress: tuple[int, int, int, int, int]


class HeartbeatWriter:
    """A rank's beats (`phases.Beats`), about 2 µs each. For one thread.

    Two records are written in turns, each with its number and a checksum of it and the head: a process that is
    stopped or killed within a write leaves the other whole, and a reader never waits.

    Args:
        path: the file, replaced if there is one.

    Raises:
        OSError: the folder is missing, can't be written or is full.
    """

    def __init__(self, path: Path, rank: int, world_size: int) -> None:
        self.path, self._beats, self._state = path, 0, BeatState(time.monotonic())
        self._note, self._note_bytes = "", b""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, _SIZE)  # else a full disk is met as SIGBUS, within a step
            self._memory = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        head = _HEAD.pack(_MAGIC, rank, world_size, os.getpid(), self._state.at)
        self._memory[: _HEAD.size], self._head_crc = head, crc32(head)
        self._write()
        temporary.rename(path)

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None:
        """The rank is in `phase` and not stuck."""
        if note is not self._note:
            self._note, self._note_bytes = note, note.encode()[:NOTE_BYTES]
        self._state.beat(time.monotonic(), phase, step, micro_batch)
        self._write()

    def step_done(self, step: int, seconds: float) -> None:
        """`step` steps are done, the last in `seconds`."""
        self._state.step_done(time.monotonic(), step, seconds)
        self._write()

    def bear(self, seconds: float) -> None:
        """Data may make this rank wait `seconds` longer than its steps suggest (`TrainLoader.patience_s`)."""
        self._state.patience_s = seconds
        self._write()

    def _write(self) -> None:
        self._beats = number = self._beats + 1
        s, note = self._state, self._note_bytes
        record = _BEAT.pack(
            number, s.at, s.phase, s.step, s.micro_batch, s.era, s.reached, s.back,
            s.median_s, s.first_step_s, s.longest_gap_s, s.patience_s, len(note), note,
        )  # fmt: skip
        start = _SLOTS[number & 1]
        check = crc32(record, self._head_crc)
        self._memory[start : start + _BEAT.size + 4] = record + check.to_bytes(4, "little")


def read_heartbeat(path: Path) -> Heartbeat | None:
    """The newest beat in the file; None where there is none (yet), or it is no heartbeat."""
    for _ in range(3):
        try:
            content = path.read_bytes()
        except OSError:
            return None
        now = time.monotonic()
        if len(content) != _SIZE or not content.startswith(_MAGIC):
            return None
        records = [record for start in _SLOTS if (record := _whole(content, start))]
        if records:
            return _heartbeat(content, max(records), now)
    return None  # both were being written, thrice: the next look will do


def _whole(content: bytes, start: int) -> tuple[Any, ...] | None:
    record = content[start : start + _BEAT.size]
    check = int.from_bytes(content[start + _BEAT.size : start + _BEAT.size + 4], "little")
    head = crc32(content[: _HEAD.size])
    return _BEAT.unpack(record) if crc32(record, head) == check and any(record) else None


def _heartbeat(content: bytes, record: tuple[Any, ...], now: float) -> Heartbeat:
    _, rank, world_size, pid, started = _HEAD.unpack_from(content)
    beats, at, phase, step, micro_batch, era, reached, back, median, first, gap, patience, length, note = (
        record
    )
    return Heartbeat(
        rank,
        world_size,
        pid,
        Phase(phase),
        step,
        micro_batch,
        note[:length].decode(errors="ignore"),
        beats,
        max(0.0, now - at),
        max(0.0, now - started),
        median or None,
        first or None,
        gap or None,
        patience,
        (era, phase != Phase.CHECKPOINT, reached, back, micro_batch),
    )
