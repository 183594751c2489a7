"""Loaded by every Python of the chaos cluster (this folder comes first on its PYTHONPATH): its wall clock follows
FLAGS/clock, and a training process imports `faults_inside` on its way. The product knows nothing of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TypeVar

TRAINING = "convmlp_platform.training.trainer"
CLOCK = os.path.join(os.environ.get("CONVMLP_ROOT", "."), "flags", "clock")  # noqa: PTH118 (pathlib isn't cheap)
LOOK_S = 0.2

Time = TypeVar("Time", int, float)


class _Offset:
    """Seconds that the clock is moved by, read anew a few times a second."""

    def __init__(self) -> None:
        self.seconds, self._read = 0, -LOOK_S

    def now(self) -> int:
        if time.monotonic() - self._read > LOOK_S:
            self._read = time.monotonic()
            try:
                with open(CLOCK) as file:  # noqa: PTH123
                    self.seconds = int(file.read())
            except (OSError, ValueError):
                self.seconds = 0
        return self.seconds


_offset = _Offset()


def _moved(clock: Callable[[], Time], second: int) -> Callable[[], Time]:
    return lambda: clock() + second * _offset.now()


class _BeforeTraining:
    """Finds no module, but sees which is asked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        if name == TRAINING:
            sys.meta_path.remove(self)
            import faults_inside

            faults_inside.install()


time.time, time.time_ns = _moved(time.time, 1), _moved(time.time_ns, 10**9)
sys.meta_path.insert(0, _BeforeTraining())
