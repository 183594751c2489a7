"""Run folders as drivers and ranks leave them: going on, finished, stopped, died. Nothing trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from convmlp_platform.config.identity import write_identity
from convmlp_platform.goodput.goodput_log import LogHeader, LogLine
from convmlp_platform.health.events import RunEvents, append_line
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import CheckpointCommitted, Journal, MetricsRecord, RunStatus, Status

EVERY = 100
"""Steps between evaluations."""


@dataclass
class Story:
    """A run of one attempt that does `speed` steps a second and has done `done` of `steps` at `now`, unix seconds.

    `causes`: of attempts before, each of which ended at its first step. `end`: the driver's exit code; None: it hasn't
    ended. `message`: of the last attempt's end, which had the cause `cause`.
    """

    now: float
    done: int = 420
    steps: int = 1000
    speed: float = 2.0
    workers: int = 2
    task: str = "classification"
    causes: Sequence[str] = ()
    end: int | None = None
    cause: str = "finished"
    message: str = ""
    pid: int = 4711
    metrics: dict[str, float] = field(default_factory=lambda: {"eval/top1": 50.0, "eval/loss": 1.5})

    @property
    def began(self) -> float:
        """The driver's start: 10 s before the first step of the last attempt, 20 s for each attempt before."""
        return self.now - self.done / self.speed - 10.0 - 20.0 * len(self.causes)

    def at(self, step: int) -> float:
        """When a step of the last attempt was done."""
        return self.now - (self.done - step) / self.speed

    def write(self, run: Path) -> Path:
        """Put it all into the folder `run`; returns that."""
        run.mkdir(parents=True, exist_ok=True)
        write_identity(run, {"seed": 0})
        (run / "job.json").write_text(json.dumps({"task": {"name": self.task}, "name": run.name}))
        self._events(run)
        self._goodput(run)
        self._journal(run)
        for step in range(EVERY, self.done + 1, EVERY):
            line = {"step": step, "attempt": 1, "metrics": self._of(step)}
            append_line(run / "evaluations.jsonl", json.dumps(line))
            (run / "checkpoints" / f"step-{step:09d}").mkdir(parents=True)
        return run

    def _of(self, step: int) -> dict[str, float]:
        """An evaluation: each is a point better than the one before."""
        better = step / EVERY
        return {
            name: value + (0.0 if name.endswith("loss") else better) for name, value in self.metrics.items()
        }

    def _events(self, run: Path) -> None:
        events = RunEvents(run / "events.jsonl")
        workers, hosts = self.workers, [f"gpu-{rank // 8:02}" for rank in range(self.workers)]
        events.append("driver_started", time=self.began, host="login-1", pid=self.pid, num_workers=workers)
        for start, cause in enumerate([*self.causes, None], 1):
            begin = self.began + 20.0 * (start - 1)
            events.append("attempt_started", time=begin + 1, start=start, world_size=workers, hosts=hosts)
            if self.done == 0 and cause is None:
                return
            events.append("attempt_running", time=begin + 10, start=start, step=0, seconds={})
            if cause is not None:
                told = {"message": f"rank 1 on gpu-00: {cause}", "rank": 1, "stalled_s": 0.0}
                events.append("attempt_ended", time=begin + 15, start=start, cause=cause, **told)
        if self.end is not None:
            last = {
                "start": len(self.causes) + 1,
                "cause": self.cause,
                "message": self.message,
                "stalled_s": 0.0,
            }
            events.append("attempt_ended", time=self.now + 1, **last)
            events.append("driver_ended", time=self.now + 2, exit_code=self.end)

    def _goodput(self, run: Path) -> None:
        begin = self.began + 20.0 * len(self.causes) + 2.0
        header = LogHeader(
            identity="id", attempt=1, parent=0, start_step=0, rank=0, world_size=self.workers, host="gpu-00",
            device="cuda", pid=99, began=begin, start=len(self.causes) + 1, stop_step=self.steps,
        )  # fmt: skip
        path = run / "goodput" / "attempt-000001" / "rank-00000.jsonl"
        path.parent.mkdir(parents=True)
        append_line(path, json.dumps(asdict(header)))
        for step in (0, *range(EVERY, self.done, EVERY), self.done):
            took = {
                "START": 6.0,
                "COMPILE": 2.0,
                "DATA": 0.1 * step / self.speed,
                "COMPUTE": 0.9 * step / self.speed,
            }
            append_line(path, json.dumps(asdict(LogLine(self.at(step), step, "COMPUTE", took))))

    def _journal(self, run: Path) -> None:
        journal = Journal(journal_path(run))
        journal.append(Status(time=_ms(self.began), status="RUNNING"))
        for step in range(10, self.done + 1, 10):
            values = {
                "train/loss": 6.9 / (1 + step / 100), "train/lr": 5e-4, "train/images_per_second": 1823.4,
                "train/data_wait": 0.02, "train/grad_norm": 1.25,
            }  # fmt: skip
            journal.append(MetricsRecord(time=_ms(self.at(step)), step=step, values=values))
            if step % EVERY == 0:
                where = str(run / "checkpoints" / f"step-{step:09d}")
                journal.append(CheckpointCommitted(time=_ms(self.at(step)), step=step, location=where))
                journal.append(MetricsRecord(time=_ms(self.at(step)), step=step, values=self._of(step)))
        if self.end is not None:
            status: RunStatus = "FINISHED" if self.end == 0 else "KILLED" if self.end > 128 else "FAILED"
            journal.append(Status(time=_ms(self.now), status=status))
        journal.close()


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def finished(run: Path, now: float, **more: Any) -> Path:
    """A run that reached its last step."""
    return Story(now, done=1000, end=0, **more).write(run)


def died(run: Path, now: float, **more: Any) -> Path:
    """A run whose restarts were used up."""
    told = "rank 1 on gpu-00 died of signal SIGBUS; launch.restarts.hardware (=3) is used up\nmore"
    return Story(now, end=2, cause="hardware", message=told, causes=("hardware", "hang"), **more).write(run)


def stopped(run: Path, now: float, **more: Any) -> Path:
    """A run whose driver was told to stop."""
    return Story(now, end=143, cause="stopped", message="stopped by SIGTERM", **more).write(run)
