"""A run's metrics as TensorBoard's event files, in RUN/tensorboard/: what MLflow gets, with the same names and steps.

`tensorboardX` writes them, which Ray Train brings along. Its documented SummaryWriter isn't used: where its thread dies
of a full disk, the next values wait for that thread for ever. The class below it writes at once, or raises.
"""

from __future__ import annotations

import time
from collections import deque

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import MetricsRecord, records_of
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.guard.bad_steps import BadStep
from convmlp_platform.training.step_plan import TrainState

FOLDER = "tensorboard"
_MOST_WAITING = 1000
"""Records between two hooks; a few are the rule."""


class TensorBoard(Callback):
    """On rank 0, behind the callbacks that log: writes at each hook what the tracker has recorded since the last one.

    Each start has a file of its own, which begins by taking back the points after the step that training goes on from.
    Raises OSError where the storage refuses: to be guarded.
    """

    def __init__(self, tracker: Tracker, folder: RunFolder) -> None:
        self._folder = folder
        self._waiting: deque[MetricsRecord] = deque(maxlen=_MOST_WAITING)
        self._writer: EventsWriter | None = None
        self._first, self._known = 0, frozenset[str]()
        tracker.on_metrics = self._waiting.append

    def on_start(self, state: TrainState, stop_step: int) -> None:
        self._first, self._known = state.step, self._told_before(state.step)
        if self._writer is None:
            place = self._folder.path / FOLDER
            place.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(place / "events"), f".{state.attempt}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=state.step + 1, session_log=start))
        self._catch_up()

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        self._catch_up()

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        self._catch_up()

    def on_save(self, event: SaveEvent) -> None:
        self._catch_up()

    def on_bad_step(self, bad: BadStep, state: TrainState) -> None:
        self._catch_up()

    def on_end(self, state: TrainState) -> None:
        self._catch_up()

    def on_closed(self, state: TrainState, tracker: Tracker | None) -> None:
        self._catch_up()
        if self._writer is not None:
            self._writer.close()

    def _told_before(self, step: int) -> frozenset[str]:
        """The names that have a value at `step` already; the account of time, say, is given again at each start."""
        records = records_of(journal_path(self._folder.path))
        before = (one for one in records if isinstance(one, MetricsRecord) and one.step == step)
        return frozenset(name for one in before if one not in self._waiting for name in one.values)

    def _catch_up(self) -> None:
        if self._writer is None or not self._waiting:
            return
        while self._waiting:
            record = self._waiting.popleft()
            known = self._known if record.step == self._first else ()
            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in record.values.items()
                if name not in known
            ]
            event = Event(wall_time=record.time / 1000, step=record.step, summary=Summary(value=values))
            self._writer.write_event(event)
        self._writer.flush()
