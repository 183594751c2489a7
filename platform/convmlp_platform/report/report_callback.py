"""The report of a run that has just ended, as an artifact of its record.

It costs the run nothing that matters: it is made after all else is on record, in a thread that isn't waited for longer
than `PATIENCE_S`, within `AT_THE_END`, and whatever it fails of is a line in the log.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.step_plan import TrainState

logger = logging.getLogger(__name__)

PATIENCE_S = 20.0


class RunReport(Callback):
    """`RUN/report.html`, once the run in the folder `run` has ended; rank 0 writes it."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_closed(self, state: TrainState, tracker: Tracker | None) -> None:
        if tracker is None:
            return
        outcome: list[Path | Exception] = []
        thread = threading.Thread(target=self._write, args=(outcome,), daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        if not outcome:
            logger.warning(
                "report: not done after %.0f s; `convmlp report %s` makes it", PATIENCE_S, self.run
            )
        elif isinstance(found := outcome[0], Path):
            tracker.log_artifact(found)
        else:
            logger.warning(
                "report: %s: %s; `convmlp report %s` makes it", type(found).__name__, found, self.run
            )

    def _write(self, outcome: list[Path | Exception]) -> None:
        try:
            from convmlp_platform.report.page import write_report
            from convmlp_platform.report.reported_run import AT_THE_END

            outcome.append(write_report(self.run, limits=AT_THE_END))
        except Exception as error:
            outcome.append(error)
