"""Numbers of a run for Prometheus: how far it is, when it last got further, when it last saved, with how many workers,
how often its attempts ended and why.

Ray's nodes offer them on their metrics port, each with the run's name. Ray puts `ray_` before the names.
k8s/overlays/monitoring has alerts and a dashboard of them.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from ray.util.metrics import Counter, Gauge

_EVERY_S = 5.0
_RUN = ("run",)


class RunMetrics:
    """A driver's, of one run.

    Args:
        run: its name.
        newest: a file or link that changes with each committed checkpoint; it need not be there.
    """

    def __init__(self, run: str, newest: Path, wanted: int) -> None:
        self._tags, self._newest = {"run": run}, newest
        self._step = Gauge("convmlp_step", "steps of the run that are done", _RUN)
        self._stepped = Gauge("convmlp_last_step_timestamp_seconds", "when the run got further", _RUN)
        self._saved = Gauge(
            "convmlp_last_checkpoint_timestamp_seconds", "when a checkpoint was committed", _RUN
        )
        self._workers = Gauge("convmlp_workers", "workers that train", _RUN)
        self._ended = Counter("convmlp_attempts_ended", "attempts that ended, by cause", ("run", "cause"))
        self._furthest, self._looked = 0, 0.0
        Gauge("convmlp_workers_wanted", "launch.num_workers", _RUN).set(wanted, self._tags)

    def look(self, step: int, workers: int) -> None:
        """Tell how the run is, every few seconds; may be called as often as one likes."""
        now = time.monotonic()
        if now - self._looked < _EVERY_S:
            return
        self._looked = now
        if step != self._furthest:
            self._furthest = step
            self._step.set(step, self._tags)
            self._stepped.set(time.time(), self._tags)
        self._workers.set(workers, self._tags)
        with contextlib.suppress(OSError):  # none yet, or checkpoints lie elsewhere
            self._saved.set(self._newest.lstat().st_mtime, self._tags)

    def ended(self, cause: str) -> None:
        """Count an attempt's end."""
        self._ended.inc(1, self._tags | {"cause": cause})
        self._workers.set(0, self._tags)
