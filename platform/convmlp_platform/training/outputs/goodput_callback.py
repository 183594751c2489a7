"""Keeping the record of every second of this rank, for `goodput.account` to account.

Telling where the time goes: in the run's metrics while it trains, as a table and a picture at its end.
"""

from __future__ import annotations

import logging
import socket
import time
from os import environ, getpid
from pathlib import Path

from convmlp_platform.config.sections.execution import LaunchSection
from convmlp_platform.distributed import World
from convmlp_platform.goodput.account import Goodput, account_of
from convmlp_platform.goodput.goodput_log import TICK_SECONDS, GoodputWriter, LogHeader
from convmlp_platform.goodput.goodput_picture import plot
from convmlp_platform.health.heartbeat.phases import Beats, Phase, PhaseClock
from convmlp_platform.ledger.ledger import LedgerHeader, attempt_folder
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.guard.bad_steps import BadStep
from convmlp_platform.training.guard.guard import Action
from convmlp_platform.training.step_plan import TrainState
from data_prep.storage.json_files import write_json

logger = logging.getLogger(__name__)

# A report may take this share of the time: between two lies at least what the last one took, divided by it.
_SHARE = 0.002


class GoodputReport(Callback):
    """On rank 0: goodput/CLASS (share of all time since the run began), cost/... with a price, at the start, after
    evaluations and at the end; there also goodput.json and goodput.png.

    While it trains rank 0's record stands for those of the others, which march in step with it; at the end, once this
    rank's is closed, all are read: that account is the run's, which `convmlp goodput` gives later, too. It comes after
    GoodputLog among the callbacks, whose lines it reads.
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
        """The account waits for `on_closed`: the run's end takes time, too."""

    def on_closed(self, state: TrainState, tracker: Tracker | None) -> None:
        found = self._account(every_rank=True)
        if found is None:
            return
        self.tracker.log_metrics(found.metrics(), state.step)
        self.tracker.set_tags({"goodput": f"{100 * found.goodput:.2f} %"})
        try:
            table = self.folder.plots / "goodput.json"
            table.parent.mkdir(parents=True, exist_ok=True)
            write_json(table, found.to_dict())
            self.tracker.log_artifact(table, "goodput")
            picture = plot(self.folder.path.name, found, self.folder.plots / "goodput.png")
            self.tracker.log_artifact(picture, "goodput")
        except Exception as error:  # whatever a picture fails of is no reason to fail a finished run
            logger.warning("goodput: the account can't be written: %s: %s", type(error).__name__, error)

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


# A save takes at least this long; less is a look at whether one is still being written.
_SHORTEST_SAVE_S = 0.001
# Saves closer together than this share a line: what lies between two lines is divided by steps.
_CLOSEST_LINES_S = 0.25


class GoodputLog(Callback):
    """Writes this rank's log (goodput.goodput_log); on every rank.

    Construct it before training starts: it listens to `clock`, and passes on what it hears. An attempt begins at
    `on_start`, also the one that follows a rollback within the process.
    `close` writes the last line; call it when nothing is left to do.
    """

    def __init__(self, clock: PhaseClock, folder: RunFolder, world: World, launch: LaunchSection) -> None:
        self.clock, self.folder, self.world, self.launch = clock, folder, world, launch
        self._began = time.time() - sum(clock.read().values())
        self._writer: GoodputWriter | None = None
        self._attempt, self._going_back = 0, False
        self._stop_step: int | None = None
        self._heard_before = clock.beats
        clock.beats = _Listener(self, clock.beats)

    def on_start(self, state: TrainState, stop_step: int) -> None:
        self._stop_step = stop_step
        self._follow(state)

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        self._follow(state)
        self.line(state.step, stays=False)

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        self._follow(state)
        self.line(state.step, metrics if self.world.is_main else None)

    def on_bad_step(self, bad: BadStep, state: TrainState) -> None:
        """Record a rollback; all time from it until the next attempt begins counts as going back."""
        if bad.action is Action.ROLLBACK:
            self._follow(state)
            self.line(state.step)
            self._going_back = True

    def on_end(self, state: TrainState) -> None:
        self._follow(state)
        self.line(state.step)

    def line(self, step: int, metrics: dict[str, float] | None = None, *, stays: bool = True) -> None:
        """Record the clock's current times; nothing while the run goes back."""
        if self._writer is not None and not self._going_back:
            self._writer.line(self.clock, step, metrics, stays=stays)

    def close(self) -> None:
        """Write the last line, and listen no more; a second call does nothing."""
        self.clock.beats = self._heard_before
        self.line(self.clock.step)
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _follow(self, state: TrainState) -> None:
        """Begin the file of another attempt, and end that of the one before."""
        if state.attempt == self._attempt:
            return
        if self._writer is not None:
            self._writer.close()
        self._attempt, self._going_back = state.attempt, False
        self._writer = GoodputWriter(self.folder.goodput, self._header(state))
        self.line(state.step)

    def _header(self, state: TrainState) -> LogHeader:
        start = environ.get("CONVMLP_START", "")
        parent, start_step = _origin(self.folder.ledger, state)
        return LogHeader(
            identity=self.folder.identity,
            attempt=state.attempt,
            parent=parent,
            start_step=start_step,
            rank=self.world.rank,
            world_size=self.world.size,
            host=socket.gethostname(),
            device=self.world.device.type,
            pid=getpid(),
            began=self._began,
            start=int(start) if start.isdecimal() else None,
            price_per_hour=self.launch.price_per_gpu_hour,
            currency=self.launch.currency,
            stop_step=self._stop_step,
        )


class _Listener:
    """Hears each change of the clock: a save that is over is worth a line; else one is, every 10 s."""

    def __init__(self, log: GoodputLog, then: Beats | None) -> None:
        self._log, self._then = log, then
        self._phase, self._since = log.clock.phase, time.monotonic()
        self._due, self._stayed = 0.0, 0.0

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None:
        if self._then is not None:
            self._then.beat(phase, step, micro_batch, note)
        now = time.monotonic()
        if phase is not self._phase:
            saved = self._phase is Phase.CHECKPOINT and now - self._since >= _SHORTEST_SAVE_S
            self._phase, self._since = phase, now
            if saved and now - self._stayed >= _CLOSEST_LINES_S:
                self._stayed, self._due = now, now + TICK_SECONDS
                self._log.line(step)
        if now >= self._due:
            self._tick(step, now)

    def step_done(self, step: int, seconds: float) -> None:
        if self._then is not None:
            self._then.step_done(step, seconds)
        now = time.monotonic()
        if now >= self._due:
            self._tick(step, now)

    def bear(self, seconds: float) -> None:
        if self._then is not None:
            self._then.bear(seconds)

    def _tick(self, step: int, now: float) -> None:
        self._due = now + TICK_SECONDS
        self._log.line(step, stays=False)


def _origin(ledger: Path, state: TrainState) -> tuple[int, int]:
    """The attempt whose checkpoint this one went on from and the checkpoint's step, by the ledger's header."""
    for path in sorted(attempt_folder(ledger, state.attempt).glob("rank-*.ledger")):
        try:
            with path.open("rb") as file:
                header = LedgerHeader.decode(file.readline(1 << 20))
        except (OSError, ValueError, TypeError, KeyError):
            continue
        return header.parent, header.start_step
    return 0, state.step
