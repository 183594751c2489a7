"""One training process: what the fork server's fork becomes. It knows its rank and its files, and nothing of Ray."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.reading.loader import reader_died
from convmlp_platform.distributed import device_failed, joined_world, lost_peer
from convmlp_platform.errors import recorded
from convmlp_platform.health.hangs.stacks import register_stacks
from convmlp_platform.health.heartbeat.heartbeat import HeartbeatWriter
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.launch.run_summary import summary_of
from convmlp_platform.launch.workers.process_files import FINAL_STOP, ProcessFiles
from convmlp_platform.launch.workers.process_tree import children_die_with_us, die_with_parent
from convmlp_platform.report.report_callback import RunReport
from convmlp_platform.runs.run_folder import run_path
from convmlp_platform.training.preflight.preflight import preflight
from convmlp_platform.training.run import run
from convmlp_platform.training.stop_request import StopRequest
from data_prep.console import settle_loggers
from data_prep.storage.files import write_atomically


class MarkedHeartbeat(HeartbeatWriter):
    """A heartbeat that notes how long a start takes, until the first step is finished."""

    def __init__(self, files: ProcessFiles, rank: int, world_size: int, forked: float) -> None:
        super().__init__(files.heartbeat, rank, world_size)
        self._file, self._forked = files.marks, forked
        self._marks: dict[str, float] = {}
        self.mark("begun")

    def mark(self, name: str, **facts: float) -> None:
        """Note the time since the fork under `name`."""
        self._marks |= {name: time.time() - self._forked} | facts
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self._marks))
        temporary.rename(self._file)

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None:
        """See HeartbeatWriter."""
        super().beat(phase, step, micro_batch, note)
        if "loaded" not in self._marks and phase is not Phase.START:
            self.mark("loaded", step=step)

    def step_done(self, step: int, seconds: float) -> None:
        """See HeartbeatWriter."""
        super().step_done(step, seconds)
        if "stepped" not in self._marks:
            self.mark("stepped")


def main(settings: Mapping[str, Any]) -> NoReturn:
    """Train one rank's part, write the outcome, end the process. To be called in a fresh fork.

    Args:
        settings: `job` (all its values), `environment` (RANK and so on), `rank`, `world_size`, `start`, `folder`,
            `forked` (unix seconds). Without a `rank`, the job's preflight is made in place of training.
    """
    os.setsid()
    die_with_parent()
    children_die_with_us()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    os.environ.update(settings["environment"])
    settle_loggers()
    files = ProcessFiles.within(Path(settings["folder"]), settings["start"])
    stop = StopRequest()
    stop.final = False
    signal.signal(FINAL_STOP, lambda *_: _stop_for_good(stop))
    with stop.listening(signal.SIGTERM):
        register_stacks(files.stacks)
        outcome = _train(settings, files, stop) if "rank" in settings else _preflight(settings)
        write_atomically(files.outcome, json.dumps(outcome).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by sys.exit: an error leaves no time for a group whose other ranks are stuck, and the fork server's exit
        # handlers are not ours to run.
        os._exit(outcome["kind"] == "error")


def _stop_for_good(stop: StopRequest) -> None:
    stop.final = True
    stop.ask("the driver's end")


def _train(settings: Mapping[str, Any], files: ProcessFiles, stop: StopRequest) -> dict[str, Any]:
    try:
        beats = MarkedHeartbeat(files, settings["rank"], settings["world_size"], settings["forked"])
        job = TrainJob.model_validate(settings["job"])
        group = joined_world(use_gpu=job.launch.use_gpu is not False)
        group.__enter__()  # it ends with the process
        beats.mark("joined")
        result = run(job, [RunReport(run_path(job))], clock=PhaseClock(beats), stop=stop)
    except BaseException as error:
        return failed(error)
    return finished(result.stopped, result.steps, summary_of(result))


def _preflight(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        report = preflight(TrainJob.model_validate(settings["job"]))
    except BaseException as error:
        return failed(error)
    return finished(None, 0, asdict(report))


def finished(stopped: str | None, steps: int, summary: dict[str, Any]) -> dict[str, Any]:
    """The outcome of a process that came to its end, or was told to stop and has saved."""
    kind = "finished" if stopped is None else "stopped"
    return {"kind": kind, "reason": stopped, "step": steps, "summary": summary}


def failed(error: BaseException) -> dict[str, Any]:
    """The outcome of a process that raised: the fields of its `ErrorRecord` (`platform` is the record's `kind`), and
    whether another rank broke the collective that it raised."""
    record = recorded(error)
    dead = reader_died(error) or device_failed(error)
    return {
        "kind": "error",
        "cause": "hardware" if dead else record.cause,
        "peer": lost_peer(error),
        "headline": record.headline,
        "message": record.message,
        "platform": record.kind,
        "traceback": record.traceback,
        "details": record.details,
    }
