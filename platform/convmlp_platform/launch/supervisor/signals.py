"""SIGINT and SIGTERM to the driver: the first asks to save and end, the second to end at once, the third kills."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """The driver was told to stop by `signal_number`; no worker is left. `saved` is the step it can go on after, None
    where nothing is known to be saved."""

    def __init__(self, signal_number: int, saved: int | None = None) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number, self.saved = signal_number, saved


class StopSignals:
    """The signals that came. They are looked at rather than raised: an exception amid one of Ray's calls comes out of
    it as another one.

    `number`: the first; None: there was none. `hurry`: there was a second.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.hurry = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within: signals are taken note of. In the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, _frame: FrameType | None) -> None:
            self.hurry = self.number is not None
            self.number = self.number or number
            if self.hurry:
                signal.signal(number, signal.SIG_DFL)

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        # Ray blocks SIGINT in the drivers of submitted jobs, whose SIGTERM does the same.
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
