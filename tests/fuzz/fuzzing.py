"""Running readers over damaged files: in processes of their own, with limits of time and memory, each input by number.

The n-th input of a format depends on the seed, the format's name and n alone, so it can be made again by itself.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import psutil  # type: ignore[import-untyped]
from mutations import Text, mutate

from convmlp_platform.errors import PlatformError
from data_prep.errors import DataPrepError

Facts = frozenset[Any]
Verdict = Literal["same", "refused", "read", "traceback", "wrong", "hang", "died"]
FAULTS: tuple[Verdict, ...] = ("traceback", "wrong", "hang", "died")

CPU_SECONDS, WALL_SECONDS = 20.0, 300.0
"""For one file: of CPU time, since the machine may be busy with other things; and without any."""
MEMORY_BYTES = 3 << 30
"""That a reader may take beyond what the process has when it begins."""


@dataclass(frozen=True)
class Format:
    """A kind of file that the product reads.

    Args:
        make: writes valid files into an empty folder, the same ones each time (see `made`).
        files: the pattern of those to damage.
        read: reads them as the product does, given the folder; returns what a user of the content gets.
        text: damage values too, not only bytes.
        checked: a checksum covers every byte of the file: what is read must be among what the whole files give.
        errors: those that a user can fix; all others are bugs.
        share: of the files of a run, compared with the others'.
    """

    name: str
    make: Callable[[Path], None]
    files: str
    read: Callable[[Path], Facts]
    text: Text | None = None
    checked: bool = False
    errors: tuple[type[Exception], ...] = (PlatformError, DataPrepError)
    share: float = 1.0
    whole: Callable[[Path], Facts] | None = None
    """Of the whole files, where that is more than `read` gives: what it may fall back to."""


@dataclass
class Fault:
    """An input that a reader fails on."""

    format: str
    number: int
    verdict: Verdict
    what: str
    kept: Path | None = None


@dataclass
class Outcome:
    """What became of the inputs, by format and verdict."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @property
    def files(self) -> int:
        return sum(sum(counts.values()) for counts in self.counts.values())


def made(format: Format, folder: Path) -> None:
    """The valid files; clocks stand still, for some formats hold the time."""
    with (
        mock.patch("time.time", lambda: 0.0),
        mock.patch("time.asctime", lambda: "Thu Jan  1 00:00:00 1970"),
    ):
        format.make(folder)


def damaged(format: Format, seed: int, number: int, folder: Path) -> tuple[Path, bytes]:
    """The n-th input: which file of `folder` is damaged, and its content then."""
    draw = random.Random(f"{seed}/{format.name}/{number}")
    paths = sorted(path for path in folder.glob(format.files) if path.is_file())
    path = draw.choice(paths)
    return path, mutate(draw, path.read_bytes(), format.text)


def try_one(format: Format, seed: int, number: int, folder: Path, whole: Facts) -> tuple[Verdict, str]:
    """Read the n-th input in place of its file, which is put back."""
    path, content = damaged(format, seed, number, folder)
    original = path.read_bytes()
    path.write_bytes(content)
    try:
        found = format.read(folder)
    except format.errors:
        return "refused", ""
    except MemoryError:
        return "traceback", f"MemoryError: more than {MEMORY_BYTES:,} bytes\n{traceback.format_exc(limit=-3)}"
    except Exception:
        return "traceback", traceback.format_exc(limit=-6)
    finally:
        path.write_bytes(original)
    if format.checked:
        return (
            ("same", "")
            if found <= whole
            else ("wrong", f"read, but not as written: {str(found - whole)[:300]}")
        )
    return ("same" if found == whole else "read"), ""


def run(
    formats: Sequence[Format], files: int, seed: int, processes: int, keep: Path, tell: Callable[[str], None]
) -> Outcome:
    """Try `files` inputs, each format its share; those that fail are kept in the folder `keep`."""
    shares = sum(format.share for format in formats)
    work = [
        (format, number)
        for format in formats
        for number in range(max(1, round(files * format.share / shares)))
    ]
    outcome = Outcome({format.name: Counter() for format in formats})
    with _Pool(formats, seed, processes) as pool:
        for count, (format, number, verdict, what) in enumerate(pool.results(work), 1):
            outcome.counts[format.name][verdict] += 1
            if verdict in FAULTS:
                kept = pool.keep(format, number, keep)
                outcome.faults.append(Fault(format.name, number, verdict, what, kept))
                tell(f"{format.name} {number}: {verdict}: {what.strip().rpartition(chr(10))[2][:200]}")
            if count % 1000 == 0:
                tell(f"{count:,} of {len(work):,} files, {len(outcome.faults)} faults")
    return outcome


class _Worker:
    def __init__(self, formats: Sequence[Format], seed: int, folder: Path) -> None:
        context = get_context("fork")
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, formats, seed, folder), daemon=True)
        self.process.start()
        theirs.close()
        self.task: tuple[int, int] | None = None
        self._since, self._cpu = 0.0, 0.0

    def give(self, task: tuple[int, int]) -> None:
        self.task, self._since = task, time.monotonic()
        self.channel.send(task)

    def stands_still(self) -> bool:
        """Whether it has computed nothing for too long."""
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(self.process.pid).cpu_times()
            if times.user + times.system > self._cpu + 0.1:
                self._cpu, self._since = times.user + times.system, time.monotonic()
        return time.monotonic() - self._since > WALL_SECONDS

    def end(self) -> int:
        self.process.kill()
        self.process.join()
        self.channel.close()
        return self.process.exitcode or 0


class _Pool:
    """Processes that try inputs; one that dies or hangs is replaced."""

    def __init__(self, formats: Sequence[Format], seed: int, processes: int) -> None:
        self._formats, self._seed, self._count = formats, seed, processes
        self._places = {format.name: place for place, format in enumerate(formats)}

    def __enter__(self) -> _Pool:
        self._folder = Path(tempfile.mkdtemp(prefix="convmlp-fuzz-"))
        self._workers = [self._new() for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _new(self) -> _Worker:
        return _Worker(self._formats, self._seed, Path(tempfile.mkdtemp(dir=self._folder)))

    def results(self, work: Sequence[tuple[Format, int]]) -> Iterator[tuple[Format, int, Verdict, str]]:
        tasks = iter([(self._places[format.name], number) for format, number in work])
        for worker in self._workers:
            _give_next(worker, tasks)
        while busy := [worker for worker in self._workers if worker.task is not None]:
            ready = wait([worker.channel for worker in busy], timeout=1.0)
            for worker in busy:
                assert worker.task is not None
                place, number = worker.task
                overdue = worker.channel not in ready and worker.stands_still()
                if worker.channel not in ready and not overdue:
                    continue
                try:
                    if overdue:
                        raise EOFError
                    verdict, what = worker.channel.recv()
                except (EOFError, OSError):
                    if not overdue:
                        worker.process.join(5.0)
                    code = worker.end()
                    hang = overdue or code == -signal.SIGPROF
                    limit = (
                        f"{WALL_SECONDS:g} s of standing still"
                        if overdue
                        else f"{CPU_SECONDS:g} s of CPU time"
                    )
                    verdict = "hang" if hang else "died"
                    what = f"it took more than {limit}" if hang else f"the process ended with code {code}"
                    worker = self._replace(worker)
                yield self._formats[place], number, verdict, what
                _give_next(worker, tasks)

    def _replace(self, worker: _Worker) -> _Worker:
        new = self._new()
        self._workers[self._workers.index(worker)] = new
        return new

    def keep(self, format: Format, number: int, folder: Path) -> Path:
        """The files with the damaged one among them, in a folder of their own."""
        target = folder / f"{re.sub(r'[^a-zA-Z0-9]+', '-', format.name).strip('-')}-{number}"
        with contextlib.suppress(OSError):
            shutil.rmtree(target)
        target.mkdir(parents=True)
        made = get_context("fork").Process(target=_write_input, args=(format, self._seed, number, target))
        made.start()
        made.join()
        return target


def _give_next(worker: _Worker, tasks: Iterator[tuple[int, int]]) -> None:
    worker.task = None
    with contextlib.suppress(StopIteration):
        worker.give(next(tasks))


def _write_input(format: Format, seed: int, number: int, folder: Path) -> None:
    made(format, folder)
    path, content = damaged(format, seed, number, folder)
    path.write_bytes(content)


def _serve(channel: Connection, formats: Sequence[Format], seed: int, folder: Path) -> None:
    """A process: tries what it is given until it is ended."""
    _silence()
    tempfile.tempdir = str(folder)
    os.environ["TMPDIR"] = str(folder)
    wholes: dict[int, tuple[Path, Facts]] = {}
    while True:
        place, number = channel.recv()
        format = formats[place]
        if place not in wholes:
            try:
                wholes[place] = _whole(format, folder / str(place))
            except Exception:
                channel.send(("died", f"the whole files can't be read:\n{traceback.format_exc()}"))
                continue
            _limit_memory()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process, C code or not
        result = try_one(format, seed, number, *wholes[place])
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        channel.send(result)


def _whole(format: Format, folder: Path) -> tuple[Path, Facts]:
    folder.mkdir()
    made(format, folder)
    return folder, (format.whole or format.read)(folder)


def _silence() -> None:
    import logging

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES, resource.RLIM_INFINITY)
    )
