"""The logs of a large run in bounded time and memory: of each file as many lines as there is room for.

Between two lines a rank's seconds are what its later line says more than its earlier one. So leaving out lines in
between changes no sum, as long as they all count or all don't: the lines around the step up to which an attempt's work
is part of the result are always read. What gets coarser is the picture.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path

from convmlp_platform.goodput.goodput_log import (
    LINE_BYTES,
    GoodputFile,
    LogHeader,
    LogLine,
    in_order,
    parse_header,
    read_log,
)
from convmlp_platform.goodput.slices import surviving_stops
from data_prep.storage.json_files import DamagedJson, parse_json

MOST_LINES = 20_000
"""Of all files together: a kilobyte of memory each, and 60 µs of time."""
_FEWEST = 4
_CLOSE = 8 * LINE_BYTES


def read_within(folder: Path, ranks: str = "*", most: int = MOST_LINES) -> list[GoodputFile]:
    """A run's files that have a whole header, by attempt and rank, as `goodput_log.read_logs` has them; of large ones
    about `most` lines in all, at least some of each file. Rank 0's are read whole, as they hold the evaluations.

    Raises:
        OSError: one can't be read.
    """
    paths = list(folder.glob(f"attempt-*/rank-{ranks}.jsonl"))
    if sum(path.stat().st_size for path in paths) <= most * LINE_BYTES:
        found: Iterable[GoodputFile | None] = map(read_log, paths)
    else:
        heads = [(path, header) for path in paths if (header := _header(path)) is not None]
        stops = surviving_stops([GoodputFile(header, []) for _, header in heads])
        each = max(_FEWEST, most // max(1, len(heads)))
        found = (_excerpt(path, header, each, stops[header.attempt]) for path, header in heads)
    return sorted((file for file in found if file), key=lambda file: (file.header.attempt, file.header.rank))


class _Log:
    """An open file of lines. `begin`: where the line after its header begins."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self.size = descriptor, os.fstat(descriptor).st_size
        _, self.begin, self.first = self.line(0)

    def line(self, place: int) -> tuple[int, int, bytes]:
        """The first line that begins at `place` or after it: where it begins and ends, and its bytes. Empty at the
        file's end."""
        skip, amount = (0, 4 * LINE_BYTES) if place == 0 else (place - 1, 4 * LINE_BYTES)
        while True:
            content = os.pread(self._descriptor, amount, skip)
            begin = 0 if place == 0 else content.find(b"\n") + 1
            end = content.find(b"\n", begin) if begin or place == 0 else -1
            if end >= 0:
                return skip + begin, skip + end + 1, content[begin:end]
            if len(content) < amount:  # the last line, without its end
                return skip + begin, self.size, content[begin:] if begin or place == 0 else b""
            amount *= 4

    def lines(self, place: int, end: float) -> Iterator[tuple[int, bytes]]:
        """The lines that begin between these, each with its place."""
        while place < min(end, self.size):
            begin, place, content = self.line(place)
            yield begin, content


@contextmanager
def _opened(path: Path) -> Iterator[_Log]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _Log(descriptor)
    finally:
        os.close(descriptor)


def _header(path: Path) -> LogHeader | None:
    with _opened(path) as log:
        return parse_header(log.first)


def _excerpt(path: Path, header: LogHeader, most: int, stop: float) -> GoodputFile | None:
    if header.rank == 0:
        whole = read_log(path)
        return None if whole is None else GoodputFile(header, _thinned(whole.lines, most, stop))
    with _opened(path) as log:
        length = log.size - log.begin
        texts: dict[int, bytes] = {}
        for number in range(most):
            begin, _, content = log.line(log.begin + length * number // most)
            texts[begin] = content
        texts |= dict(log.lines(max(log.begin, log.size - _CLOSE), inf))
        if 0 <= stop < inf:
            near = _near(log, stop)
            texts |= dict(log.lines(near, near + 2 * _CLOSE))
    return GoodputFile(header, list(in_order(_parsed(texts[place]) for place in sorted(texts))))


def _near(log: _Log, stop: float) -> int:
    """A place a few lines before the last line of no more than `stop` steps: steps never fall within a file."""
    low, high = log.begin, log.size
    while high - low > _CLOSE:
        middle = (low + high) // 2
        begin, _, content = log.line(middle)
        line = _parsed(content)
        if line is None or begin >= high:
            break
        low, high = (begin, high) if line.step <= stop else (low, middle)
    return max(log.begin, low - LINE_BYTES)


def _thinned(lines: Sequence[LogLine], most: int, stop: float) -> list[LogLine]:
    """The same of lines that are in memory; those with metrics stay."""
    last = len(lines) - 1
    every = max(1, len(lines) // most)
    edge = next((place for place, line in enumerate(lines) if line.step > stop), last)
    kept = {0, last - 1, last, edge - 1, edge}
    return [line for place, line in enumerate(lines) if place in kept or place % every == 0 or line.metrics]


def _parsed(content: bytes) -> LogLine | None:
    try:
        return parse_json(content, LogLine, finite=False) if content.strip() else None
    except DamagedJson:
        return None
