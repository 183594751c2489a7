"""Reading a run's ledger: the files of all attempts, which of their frames are whole, and which attempts count up to
which step: the line of checkpoints that survived.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from convmlp_platform.data.sample_order import Indices
from convmlp_platform.errors import DataError
from convmlp_platform.ledger.ledger import LedgerHeader, attempt_folder, known_attempts
from convmlp_platform.ledger.proof_report import LINE, LedgerFindings, Span
from data_prep.storage.json_files import Count, DamagedJson, read_json


@dataclass(frozen=True)
class LedgerFile:
    """The record of one rank in one attempt.

    Args:
        frames: [N] in the layout `header.frame`, mapped from the file; damaged ones included.
        whole: [N] bool, the frames whose hash is right.
        torn_bytes: number of bytes that were dropped at the end, where a write was cut short.
    """

    path: Path
    header: LedgerHeader
    frames: NDArray[np.void]
    whole: NDArray[np.bool_]
    torn_bytes: int

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def stop(self) -> int:
        """One past the last step that is recorded whole; the start step where there is none."""
        steps, _ = self._by_step
        return int(steps[-1]) + 1 if len(steps) else self.header.start_step

    def between(self, start: int, stop: int) -> NDArray[np.void]:
        """The whole frames that say they are of the steps start..stop - 1, in the order of steps."""
        steps, places = self._by_step
        first, past = np.searchsorted(steps, (start, stop))
        return self.frames[places[first:past]]

    @cached_property
    def _by_step(self) -> tuple[Indices, Indices]:
        """Steps of the whole frames in order, and where the frames are."""
        places = np.flatnonzero(self.whole)
        steps = self.frames["step"][places].astype(np.int64)
        order = np.argsort(steps, kind="stable")
        return steps[order], places[order]


@dataclass(frozen=True)
class RecordedAttempt:
    """One start of training: its files by rank (some may be missing), and what all of their headers say."""

    header: LedgerHeader
    """Of rank 0."""
    files: dict[int, LedgerFile]

    @property
    def number(self) -> int:
        return self.header.attempt

    @property
    def missing_ranks(self) -> list[int]:
        return sorted(set(range(self.header.world_size)) - self.files.keys())

    @property
    def recorded(self) -> int:
        """Samples in the attempt's whole frames."""
        return sum(int(f.whole.sum()) * f.frames.dtype["samples"].shape[0] for f in self.files.values()) * (
            self.header.micro_batch_size
        )

    @property
    def stop(self) -> int:
        """One past the last step that every rank has recorded."""
        if self.missing_ranks:
            return self.header.start_step
        return min(file.stop for file in self.files.values())


def read_file(path: Path) -> LedgerFile:
    """Map one file and check each of its frames.

    What follows the last whole frame is what a killed process or machine didn't get to write, and is dropped; a
    damaged frame before it was damaged later, and stays for the checker to name.

    Raises:
        DataError: it can't be read, or its header isn't what was written.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 20)
        header = LedgerHeader.decode(line)
        size = path.stat().st_size - len(line)
        layout = header.frame
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"ledger {path} can't be read: {error}") from error
    count = size // layout.itemsize
    frames = np.memmap(path, layout, "r", len(line), (count,)) if count else np.empty(0, layout)
    whole = _whole(frames, header.seed)
    kept = int(np.flatnonzero(whole)[-1]) + 1 if whole.any() else 0
    return LedgerFile(path, header, frames[:kept], whole[:kept], size - kept * layout.itemsize)


def _whole(frames: NDArray[np.void], seed: int) -> NDArray[np.bool_]:
    data, size = frames.view(np.uint8).data, frames.dtype.itemsize
    found = (
        xxhash.xxh3_64_intdigest(data[at : at + size - 8], seed) for at in range(0, len(frames) * size, size)
    )
    return np.fromiter(found, np.uint64, len(frames)) == frames["hash"]


def read_attempts(folder: Path) -> dict[int, RecordedAttempt]:
    """All attempts that have a file, by number.

    Raises:
        DataError: there is none, or a file can't be read, isn't where its header belongs, or contradicts the
            others of its attempt.
    """
    attempts = {}
    for number in known_attempts(folder):
        paths = sorted(attempt_folder(folder, number).glob("rank-*.ledger"))
        files = [read_file(path) for path in paths]
        if files:
            attempts[number] = _attempt(folder, number, files)
    if not attempts:
        raise DataError(f"no ledger in {folder}: the run has recorded nothing, so nothing can be proven")
    return attempts


def _attempt(folder: Path, number: int, files: list[LedgerFile]) -> RecordedAttempt:
    first = replace(files[0].header, rank=0)
    for file in files:
        if file.header.file(folder) != file.path or file.header.attempt != number:
            raise DataError(f"ledger {file.path} was written as {file.header.file(folder)}: it was moved")
        if replace(file.header, rank=0) != first:
            raise DataError(f"ledger {file.path} contradicts {files[0].path}, of the same attempt")
    return RecordedAttempt(first, {file.header.rank: file for file in files})


@dataclass(frozen=True)
class _Saved:
    """The part of a checkpoint's state.json that is looked at."""

    step: Count
    attempt: Count = 0


def surviving_line(attempts: dict[int, RecordedAttempt], findings: LedgerFindings) -> list[Span]:
    """The newest attempt and those it descends from, oldest first.

    Each counts up to the step that the next one went on from; the newest, up to the last step that all of its ranks
    recorded. Steps that no attempt accounts for are problems.
    """
    spans: list[Span] = []
    number, stop = max(attempts), attempts[max(attempts)].stop
    while True:
        header = attempts[number].header
        start = header.start_step
        if stop < start:
            findings.add(
                LINE, f"attempt {number} began at step {start}, yet the next went on from its step {stop}"
            )
        spans.insert(0, Span(number, start, max(start, stop), header.world_size))
        if header.parent == 0:
            if start:
                findings.add(
                    LINE, f"attempt {number} began at step {start}: the steps before are not recorded"
                )
            return spans
        if header.parent not in attempts or header.parent >= number:
            findings.add(LINE, f"attempt {header.parent}, which {number} went on from, has no record")
            return spans
        number, stop = header.parent, start


def check_attempts(folder: Path, attempts: dict[int, RecordedAttempt], findings: LedgerFindings) -> None:
    """No attempt, and no rank's file of one, may have been taken away.

    Raises nothing: what is missing is added to `findings`. An empty folder is an attempt that was killed before
    its first file; one without all of its files and without any frame was killed while it began.
    """
    for number in range(1, max(attempts)):
        if not attempt_folder(folder, number).is_dir():
            findings.add(LINE, f"attempt {number} is missing: {attempt_folder(folder, number).name} is gone")
    for number, attempt in attempts.items():
        if attempt.recorded and attempt.missing_ranks:
            gone = ", ".join(map(str, attempt.missing_ranks[:10]))
            findings.add(
                LINE,
                f"attempt {number} has no file of rank {gone} (of {attempt.header.world_size}), "
                "yet others recorded steps",
            )


def check_checkpoints(run: Path, attempts: dict[int, RecordedAttempt], findings: LedgerFindings) -> None:
    """A checkpoint is committed only after every rank's record of its steps is durable; so it must be there."""
    for path in sorted((run / "checkpoints").glob("step-*/state.json")):
        try:
            saved = read_json(path, _Saved, finite=False)
        except (OSError, DamagedJson):
            continue  # damaged: the run passes it over too
        step, number = saved.step, saved.attempt
        if number and number not in attempts:
            findings.add(
                LINE, f"checkpoint {path.parent.name} was saved by attempt {number}, which has no record"
            )
        elif number and attempts[number].stop < step:
            findings.add(
                LINE,
                f"checkpoint {path.parent.name} was saved by attempt {number}, "
                f"of which only steps up to {attempts[number].stop} are recorded",
            )
