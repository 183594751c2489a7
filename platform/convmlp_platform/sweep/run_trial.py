"""A trial of a sweep as Ray Tune sees it: an actor that needs next to nothing itself and drives one whole run.

The run's workers are agents of its own supervisor, as for a run that is started alone: restarts, hang watch, ledger and
resuming are the same.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import ray
from ray import tune

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import PlatformError
from convmlp_platform.launch.supervisor.signals import Interrupted, StopSignals
from convmlp_platform.runs.run_folder import run_path
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import MetricsRecord, read_chunk

EPOCHS, STATUS = "epochs", "status"
# How long a call waits for news.
_STEP_S, _LOOK_S = 2.0, 0.25


@dataclass
class TrialEvaluations:
    """A run's evaluations, read from its journal as they come; each step's once, also where a restart repeats it."""

    journal: Path
    metric: str
    _offset: int = 0
    _last: int = 0
    _waiting: list[tuple[int, float]] = field(default_factory=list)

    def next(self, before: int) -> tuple[int, float] | None:
        """(step, metric) of the next one that was made earlier than after step `before`; None while there is none."""
        if not self._waiting:
            chunk = read_chunk(self.journal, self._offset)
            self._offset = chunk.end
            for record in chunk.records:
                if (
                    isinstance(record, MetricsRecord)
                    and self.metric in record.values
                    and record.step > self._last
                ):
                    self._last = record.step
                    self._waiting.append((record.step, record.values[self.metric]))
        return self._waiting.pop(0) if self._waiting and self._waiting[0][0] < before else None


class Board:
    """An actor between the sweep's driver and its trials.

    It hands each trial its job and the driver's settings of MLflow, as Tune writes all that it is given into files
    and these may hold passwords. It tells trials to save and end, as Tune's own way leaves them 10 seconds.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, Any]] = {}
        self._private: dict[str, str] = {}
        self._asked: dict[str, str] = {}
        self._all: str | None = None

    def give(self, jobs: dict[str, dict[str, Any]], private: dict[str, str]) -> None:
        """Keep the trials' jobs (all values, by trial) and `worker_environment.private_variables`."""
        self._jobs, self._private = jobs, private

    def take(self, trial: str) -> tuple[dict[str, Any], dict[str, str]]:
        """A trial's job, and the variables for its environment."""
        return self._jobs[trial], self._private

    def stop(self, why: str, trial: str | None = None) -> None:
        """Ask one trial to end, or all, also those that start later."""
        if trial is None:
            self._all = why
        else:
            self._asked.setdefault(trial, why)

    def asked(self, trial: str) -> str | None:
        """Returns the reason why the trial is to end; None if it is not to end."""
        return self._all or self._asked.get(trial)


class SweepTrial(tune.Trainable):
    """Its config: `trial` (name), `use_gpu`, `metric`, `steps_per_epoch`, `stop_step`, `board` (it has the job) and
    `over`: the trial has ended in an earlier start of the sweep, and only tells the scheduler what it did."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the run."""
        self.settings = config["run"]
        job, private = ray.get(self.settings["board"].take.remote(self.settings["trial"]))
        os.environ.update(private)
        self.job = TrainJob.model_validate(job)
        self.evaluations = TrialEvaluations(journal_path(run_path(self.job)), self.settings["metric"])
        self.signals, self.end = StopSignals(), dict[str, Any]()
        self._told, self._why = 0, self._asked()
        self._thread = threading.Thread(target=self._drive, daemon=True)
        if not self.settings["over"] and self._why is None:
            sys.stdout = _Prefixed(sys.stdout, f"[{self.settings['trial']}] ")
            self._thread.start()

    def step(self) -> dict[str, Any]:
        """The next evaluation, the run's end, or nothing new."""
        until = time.monotonic() + _STEP_S
        while time.monotonic() < until:
            ended = not self._thread.is_alive()
            found = self.evaluations.next(before=self.settings["stop_step"])
            if found is not None:
                self._told = found[0]
                return self._news({self.settings["metric"]: found[1]})
            if ended:
                return self._news({"done": True, STATUS: self._why or "over"} | self.end)
            time.sleep(_LOOK_S)
        self._why = self._why or self._asked()
        if self._why is not None:
            self.signals.number = self.signals.number or signal.SIGTERM
        return self._news({})

    def cleanup(self) -> None:
        """Let the run save and end, if it still runs."""
        self.signals.number = self.signals.number or signal.SIGTERM
        if self._thread.is_alive():
            self._thread.join()
        gc.collect()  # handles of agents: dropped later, amid this process's end, Ray prints a traceback for each

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: the run's own checkpoints are what it goes on from."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing, see `save_checkpoint`."""

    def _asked(self) -> str | None:
        return ray.get(self.settings["board"].asked.remote(self.settings["trial"]))

    def _news(self, values: dict[str, Any]) -> dict[str, Any]:
        return {EPOCHS: self._told / self.settings["steps_per_epoch"], "steps": self._told} | values

    def _drive(self) -> None:
        from convmlp_platform.launch.supervisor import supervisor

        try:
            summary = supervisor.train(self.job, use_gpu=self.settings["use_gpu"], signals=self.signals)
        except Interrupted as stop:
            self.end = {} if stop.saved is None else {"steps": stop.saved}
        except PlatformError as error:
            self.end = {STATUS: "failed", "reason": str(error)}
        except BaseException as error:  # a bug of ours costs one trial, not the sweep
            traceback.print_exc()
            self.end = {STATUS: "failed", "reason": f"{type(error).__name__}: {error}"}
        else:
            self.end = {STATUS: "finished", "steps": summary["steps"]} | summary["best"]


class _Prefixed(io.TextIOBase):
    """Lines of several trials come to one terminal: each begins with its trial's name."""

    def __init__(self, file: TextIO, prefix: str) -> None:
        self._file, self._prefix, self._begun = file, prefix, False
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """See TextIOBase."""
        with self._lock:
            for line in text.splitlines(keepends=True):
                self._file.write(line if self._begun else self._prefix + line)
                self._begun = not line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """See TextIOBase."""
        self._file.flush()

    def fileno(self) -> int:
        """See TextIOBase."""
        return self._file.fileno()
