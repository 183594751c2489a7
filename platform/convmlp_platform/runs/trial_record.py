"""The record of a sweep's trials between two starts: RUNS/SWEEP/TRIAL/trial.json, written when a trial has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from convmlp_platform.config.sweep_job import SchedulerSection
from data_prep.storage.json_files import Count, DamagedJson, read_json, write_json

NAME = "trial.json"
Status = Literal["finished", "stopped", "failed"]


class Ended(BaseModel):
    """How a trial ended.

    Args:
        status: finished: trained to its end; stopped: by the sweep's scheduler, for others do better; failed.
        steps: done by then.
        reason: of a failure; its lines are those of the error.
        scheduler: that was in force.
    """

    model_config = ConfigDict(frozen=True)

    status: Status
    steps: Count
    reason: str = ""
    scheduler: SchedulerSection

    def still_holds(self, stop_step: int, scheduler: SchedulerSection) -> bool:
        """Whether there is nothing more to do for a trial that is to end after `stop_step`: one that was finished by
        a shorter sweep goes on, and so does one that another scheduler has stopped; a failed one is tried again."""
        if self.status == "finished":
            return self.steps >= stop_step
        return self.status == "stopped" and self.scheduler == scheduler


def read_end(run: Path) -> Ended | None:
    """How the trial whose run is in this folder has ended; None where it hasn't, or nothing readable says so."""
    try:
        return read_json(run / NAME, Ended)
    except (OSError, DamagedJson):
        return None


def write_end(run: Path, end: Ended) -> None:
    """Remember it."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / NAME, end.model_dump())
