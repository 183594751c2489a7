"""Facts that Linux shows of a process in /proc, without asking the process."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "waiting for a disk or a device",
    "T": "stopped by a signal",
    "t": "held by a debugger",
    "Z": "dead",
    "X": "dead",
    "I": "idle",
}
# System calls that wait for the file of their first argument.
_READS = {"x86_64": {0, 17, 19, 295}, "aarch64": {63, 67, 65, 69}}.get(os.uname().machine, set())


@dataclass(frozen=True)
class ProcessView:
    """A process at one moment.

    Args:
        state: /proc's letter: R, S, D (uninterruptible), T (stopped), t (traced), Z (dead).
        name: of the main thread, 15 characters; readers are named after the shard they read.
        waits_in: the kernel function it waits in; empty where it doesn't wait or the kernel doesn't say.
        reads: the file it waits to read from; empty where there is none or the kernel doesn't say.
        caught: the signals it handles, as bits.
    """

    pid: int
    state: str
    name: str
    waits_in: str
    reads: str
    caught: int

    def catches(self, number: Signals) -> bool:
        """Whether it handles the signal."""
        return bool(self.caught >> (number - 1) & 1)

    def __str__(self) -> str:
        text = f"{self.pid} ({self.name}): {_STATES.get(self.state, 'unknown')} (state {self.state})"
        text += f", in {self.waits_in}" if self.waits_in else ""
        return text + (f", reading {self.reads}" if self.reads else "")


def state_of(pid: int) -> str:
    """The process's state letter; X where there is no such process."""
    try:
        return _state(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except OSError:
        return "X"


def look_at(pid: int) -> ProcessView | None:
    """All that /proc tells of the process, None where there is none."""
    folder = Path(f"/proc/{pid}")
    try:
        status = (folder / "status").read_text(errors="replace")
        stat = (folder / "stat").read_text(errors="replace")
    except OSError:
        return None
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    waits_in = _told(folder / "wchan").strip("0\n")
    return ProcessView(
        pid, _state(stat), name, waits_in, _reads(folder), int(caught.group(1), 16) if caught else 0
    )


def children_of(pid: int) -> list[int]:
    """Its child processes, of whichever of its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, _told(path).split())
    return sorted(found)


def _state(stat: str) -> str:
    return stat[stat.rindex(")") + 2]


def _reads(folder: Path) -> str:
    """Readable for the process's ancestors of the same user; elsewhere nothing is known."""
    number, _, rest = _told(folder / "syscall").partition(" ")
    if not number.isdigit() or int(number) not in _READS:
        return ""
    try:
        return str((folder / "fd" / str(int(rest.split()[0], 16))).readlink())
    except OSError:
        return ""


def _told(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
