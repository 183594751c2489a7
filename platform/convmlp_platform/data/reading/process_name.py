"""A reader process as the system sees it: named after the shard that it reads, and gone with the training process.

`ps`, `top` and the report of a hang show the name; the kernel keeps it, so it can be read of a process that no longer
answers. Setting it takes about 1 µs.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
from functools import lru_cache
from pathlib import PurePosixPath

_IDLE = b"reader idle"  # health.hangs.waiting knows it
# PR_SET_PDEATHSIG and PR_SET_NAME of prctl(2).
_DIE_WITH_PARENT, _SET_NAME = 1, 15
_LONGEST = 15

_is_reader = False


def become_reader() -> None:
    """From now on this process, a reader, is named after what it does.

    It is killed when the thread that forked it ends: torch's readers notice that only when they have read a batch,
    which one whose storage hangs never has.

    What it inherited is never collected as garbage here: the end of a process group or client that the trainer had left
    over, whose threads this process doesn't have, ended it with a segmentation fault (a reader of S3 data, two times
    of three). It also leaves the trainer's memory shared.
    """
    gc.freeze()
    global _is_reader
    _is_reader = sys.platform == "linux"
    if _is_reader:
        _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    idle()


def reads(shard: str) -> None:
    """It reads this shard: `train-00017`."""
    if _is_reader:
        _prctl(_SET_NAME, _name(shard))


def idle() -> None:
    """It has nothing to do."""
    if _is_reader:
        _prctl(_SET_NAME, _IDLE)


@lru_cache(maxsize=4096)
def _name(shard: str) -> bytes:
    """The end of a name that is too long tells more than its beginning."""
    return PurePosixPath(shard).stem.encode()[-_LONGEST:]


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda *_: 0
