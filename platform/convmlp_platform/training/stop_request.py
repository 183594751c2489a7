"""Being told to stop: SIGTERM from Kubernetes, Slurm, `kill`, the supervisor. The run then saves and ends cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether this process was told to stop, and by what. Any rank may be told; the ranks agree on the step."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.final = True
        """Whether the run is over for now; False: the supervisor starts it again at once, so nothing is closed."""
        self._interrupted = False

    def ask(self, reason: str) -> None:
        """Ask this rank to save and end; the first reason stays."""
        self.reason = self.reason or reason

    @contextmanager
    def listening(self, *signals: signal.Signals) -> Iterator[None]:
        """Within: each of `signals` (default: SIGTERM) asks instead of killing; a second Ctrl-C doesn't ask any more.
        In the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, _frame: FrameType | None) -> None:
            interrupted = number == signal.SIGINT
            if interrupted and self._interrupted:
                raise KeyboardInterrupt
            self._interrupted |= interrupted
            self.ask(signal.Signals(number).name)

        before = {number: signal.signal(number, on_signal) for number in signals or (signal.SIGTERM,)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
