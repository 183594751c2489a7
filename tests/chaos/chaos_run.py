"""One training run as its user sees it: the command, what it prints, its folder's events, its processes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_site import REPOSITORY, ChaosError, Site, is_alive, wait_for

Event = dict[str, Any]
_STEP = re.compile(r"step (\d+)/(\d+) ")
_PID = re.compile(r"rank-(\d+)-of-start-(\d+)\.(\d+)")


@dataclass
class Run:
    """`command` is typed again after each of its ends that a fault brought about."""

    site: Site
    name: str
    command: list[str]
    step: int = 0
    """The newest that was printed; goes back where the run does."""
    lines: list[str] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def start(self) -> None:
        """Type the command."""
        self._follow(self._typed())

    def start_twice(self, timeout: float = 120.0) -> str:
        """Type the command in two terminals at once; the run is the one that trains. Returns what the other printed.

        Raises:
            ChaosError: not just one of them is refused.
        """
        rivals = [self._typed(), self._typed()]
        try:
            wait_for(
                lambda: any(one.poll() is not None for one in rivals),
                "one of two drivers to give way",
                timeout,
            )
        except ChaosError:
            for one in rivals:
                one.kill()
            raise
        refused = next(one for one in rivals if one.poll() is not None)
        winner = next(one for one in rivals if one is not refused)
        self._follow(winner)
        output = refused.communicate()[0]
        if refused.returncode != 2 or winner.poll() is not None:
            raise ChaosError(f"two drivers ended with {[one.poll() for one in rivals]}: {output[-1500:]}")
        return output

    def type_again(self, timeout: float = 60.0) -> tuple[int, str]:
        """Type the command while the run is going on: exit code and output of the second driver."""
        process = self._typed()
        try:
            output = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise ChaosError(f"a second driver is still there after {timeout:.0f} s") from None
        return process.returncode, output

    def _typed(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command, env=self.site.cluster.env, cwd=REPOSITORY, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def _follow(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with (self.site.root / f"{self.name}.log").open("a") as log:
            for line in process.stdout:
                self.lines.append(line.rstrip())
                log.write(line)
                log.flush()
                if match := _STEP.match(line):
                    self.step = int(match[1])

    def signal(self, number: signal.Signals) -> None:
        """To the driver alone."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def exit_code(self) -> int | None:
        assert self._process is not None
        code = self._process.poll()
        if code is not None and self._reader is not None:
            self._reader.join(timeout=10)
        return code

    @property
    def folder(self) -> Path:
        return self.site.run_folder(self.name)

    def events(self) -> list[Event]:
        """RUN/events.jsonl so far, read without the product's help."""
        with suppress(FileNotFoundError):
            whole = (self.folder / "events.jsonl").read_bytes().rpartition(b"\n")[0]
            return [json.loads(line) for line in whole.splitlines()]
        return []

    def of_kind(self, kind: str, since: int = 0) -> list[Event]:
        """Events of a kind after the first `since` events."""
        return [event for event in self.events()[since:] if event["kind"] == kind]

    def ranks(self) -> dict[int, int]:
        """Rank → process id of the newest attempt's processes that live and have made a forward pass."""
        started = self.of_kind("attempt_started")
        newest = started[-1]["start"] if started else 0
        return {rank: pid for rank, start, pid in self._pids() if start == newest and is_alive(pid)}

    def all_pids(self) -> dict[int, int]:
        """Process id → start, of every training process there was."""
        return {pid: start for _, start, pid in self._pids()}

    def _pids(self) -> Iterator[tuple[int, int, int]]:
        for path in self.site.root.glob("flags/pids/rank-*"):
            if match := _PID.fullmatch(path.name):
                yield int(match[1]), int(match[2]), int(match[3])

    def wait(self, happened: Callable[[], bool], what: str, timeout: float = 240.0) -> None:
        """Raises ChaosError, with the run's last words, where the driver ends or time does before `happened`."""

        def happened_or_over() -> bool:
            if happened():
                return True
            if self.exit_code is not None and not happened():
                raise ChaosError(f"the driver ended with {self.exit_code}")
            return False

        try:
            wait_for(happened_or_over, what, timeout)
        except ChaosError as error:
            raise ChaosError(f"waiting for {what}: {error}\n{self.last_words()}") from None

    def wait_for_end(self, timeout: float = 300.0) -> int:
        """The driver's exit code."""
        try:
            wait_for(lambda: self.exit_code is not None, "the driver's end", timeout)
        except ChaosError as error:
            raise ChaosError(f"{error}\n{self.last_words()}") from None
        assert self.exit_code is not None
        return self.exit_code

    def last_words(self) -> str:
        """For a message about what went wrong."""
        events = "\n".join(json.dumps(event)[:600] for event in self.events()[-8:])
        return f"last lines:\n{chr(10).join(self.lines[-25:])}\nlast events:\n{events}"

    def end(self) -> None:
        """However this play went: no driver stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def seconds_since(moment: float, event: Event) -> float:
    """From `moment` (time.time()) to the event."""
    return round(float(event["time"]) - moment, 2)


def now() -> float:
    """The clock that events carry."""
    return time.time()
