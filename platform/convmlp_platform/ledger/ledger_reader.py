"""Reading a run's ledger: the files of all attempts, and which of their frames are whole."""

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
