"""Telling where the time goes: in the run's metrics while it trains, as a table and a picture at its end."""

from __future__ import annotations

import json
import logging
import time

from convmlp_platform.health.goodput import Goodput, account_of
from convmlp_platform.health.goodput_picture import plot
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.run_folder import RunFolder
from convmlp_platform.training.state import TrainState
from data_prep.files import write_atomically

logger = logging.getLogger(__name__)

# A report may take this share of the time: between two lies at least what the last one took, divided by it.
_SHARE = 0.002


class GoodputReport(Callback):
    """On rank 0: goodput/CLASS (share of all time since the run began), cost/... with a price, at the start, after
    evaluations and at the end; there also goodput.json and goodput.png.

    While it trains rank 0's record stands for those of the others, which march in step with it; at the end all are
    read. It comes after GoodputLog among the callbacks, whose lines it reads.
    """

    def __init__(self, tracker: Tracker, folder: RunFolder) -> None:
        self.tracker, self.folder = tracker, folder
        self._due = 0.0

    def on_start(self, state: TrainState, stop_step: int) -> None:
        self._log(state)

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        self._log(state)

    def on_stop(self, reason: str, state: TrainState) -> None:
        """Log the account without a picture: the sender of the stop request may kill the process soon."""
        self._due = 0.0
        self._log(state)

    def on_end(self, state: TrainState) -> None:
        found = self._account(every_rank=True)
        if found is None:
            return
        self.tracker.log_metrics(found.metrics(), state.step)
        self.tracker.set_tags({"goodput": f"{100 * found.goodput:.2f} %"})
        try:
            table = self.folder.plots / "goodput.json"
            table.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(table, json.dumps(found.to_dict(), indent=2).encode())
            self.tracker.log_artifact(table, "goodput")
            picture = plot(self.folder.path.name, found, self.folder.plots / "goodput.png")
            self.tracker.log_artifact(picture, "goodput")
        except OSError as error:
            logger.warning("goodput: the account can't be written: %s", error)

    def _log(self, state: TrainState) -> None:
        began = time.monotonic()
        if began < self._due:
            return
        found = self._account(every_rank=False)
        if found is not None:
            self.tracker.log_metrics(found.metrics(), state.step)
        now = time.monotonic()
        self._due = now + (now - began) / _SHARE

    def _account(self, *, every_rank: bool) -> Goodput | None:
        try:
            return account_of(self.folder.path, ranks="*" if every_rank else f"{0:05d}")
        except OSError as error:
            logger.warning("goodput: the run's record can't be read: %s", error)
            return None
