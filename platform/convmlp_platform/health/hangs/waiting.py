"""The wait of a process's main thread, as its Python stack shows it.

A call that blocks in C leaves the Python function that made it on top of the stack, so the top frame's file says
who is waited for: torch.distributed for the other ranks, the DataLoader for the readers. Two cases stay open: a
backward pass computes, or waits for the other ranks' gradients, within one C call; and a wait for the GPU may be one
for a collective that runs there.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple


class WaitsFor(Enum):
    """The values are how much a stuck rank is to blame for the others' standing still."""

    RANKS = 0
    UNKNOWN = 1
    DATA = 2
    NOTHING = 3
    """It computes, reads, sleeps or waits for a lock of its own."""


class Frame(NamedTuple):
    """One line of a faulthandler dump."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{'/'.join(self.file.split('/')[-2:])}:{self.line} in {self.function}"


IDLE = "(reader idle)"
"""How /proc shows the name of a reader process that has nothing to do."""

_CHILD = re.compile(r"^  child (.*)$", re.MULTILINE)
_FRAME = re.compile(r'^ *File "(.*)", line (\d+) in (.*)$')
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x", re.MULTILINE)
_HEADING = re.compile(r"^Python stacks of .*:$", re.MULTILINE)
# Callers of C functions that stand between torch.distributed and the call.
_WRAPPERS = (
    "/torch/_ops.py",
    "/torch/_library/",
    "/torch/_compile.py",
    "/torch/autograd/function.py",
    "/torch/utils/_contextlib.py",
)
_RANKS = (
    "/torch/distributed/",
    "/torch/nn/parallel/distributed.py",
    "/deepspeed/comm/",
    "/convmlp_platform/distributed.py",
    "/convmlp_platform/training/guard/agreement.py",
)
_UNKNOWN = ("/torch/autograd/graph.py", "/torch/autograd/__init__.py", "/torch/cuda/")
# The DataLoader waits for its readers some frames down, in multiprocessing's queues.
_DATA, _DATA_DEPTH = "/torch/utils/data/", 10


def main_thread(stacks: str) -> list[Frame]:
    """The main thread's frames, the most recent first; empty where there is no stack.

    Args:
        stacks: of `stacks.collect_stacks`, or one dump of faulthandler.
    """
    sections = _HEADING.split(stacks)
    threads = [_frames(thread) for thread in _THREAD.split(sections[min(1, len(sections) - 1)])[1:]]
    threads = [thread for thread in threads if thread]
    # The oldest thread comes last, but libraries may have made one without Python frames of its own.
    begun_here = [thread for thread in threads if thread[-1].function == "<module>"]
    return (begun_here or threads or [[]])[-1]


def waits_for(stacks: str) -> WaitsFor:
    """Returns what the main thread waits for."""
    frames = main_thread(stacks)
    if not frames:
        return WaitsFor.UNKNOWN
    if any(_DATA in frame.file for frame in frames[:_DATA_DEPTH]):
        return WaitsFor.DATA
    top = next((frame for frame in frames if not _is_in(frame, _WRAPPERS)), frames[0])
    if _is_in(top, _RANKS):
        return WaitsFor.RANKS
    return WaitsFor.UNKNOWN if _is_in(top, _UNKNOWN) else WaitsFor.NOTHING


def readers_in(stacks: str) -> tuple[str, ...]:
    """Returns the texts of `collect_stacks` on child processes that are at work on something."""
    return tuple(text for text in _CHILD.findall(stacks) if IDLE not in text)


def _is_in(frame: Frame, parts: tuple[str, ...]) -> bool:
    return any(part in frame.file for part in parts)


def _frames(thread: str) -> list[Frame]:
    found = (_FRAME.match(line) for line in thread.splitlines())
    return [Frame(match[1], int(match[2]), match[3]) for match in found if match]
