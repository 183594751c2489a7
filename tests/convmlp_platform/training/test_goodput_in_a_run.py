"""Training keeps the record of its time: what a start, a death, a rollback and an end leave in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import few_digits

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.execution import LaunchSection
from convmlp_platform.distributed import World
from convmlp_platform.goodput.account import account_of
from convmlp_platform.goodput.goodput_log import read_logs
from convmlp_platform.goodput.slices import TimeClass
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.report.report_callback import RunReport
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import STEPS_TAG, metric_history, tag_history
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.guard.bad_steps import BadStep
from convmlp_platform.training.guard.guard import Action
from convmlp_platform.training.outputs import goodput_callback
from convmlp_platform.training.outputs.goodput_callback import GoodputLog
from convmlp_platform.training.run import run
from convmlp_platform.training.step_plan import TrainState

DRAWN = True


def job(root: Path) -> TrainJob:
    """12 steps on digits; a checkpoint every 4."""
    return TrainJob.model_validate(
        {
            "kind": "train",
            "name": "tiny",
            "model": {"name": "convmlp_tiny"},
            "data": {"path": str(few_digits()), "image_size": 32, "num_workers": 0},
            "augment": {"crop": "pad", "hflip": 0.0},
            "optimizer": {"lr": 1e-3},
            "schedule": {"warmup_epochs": 0.3},
            "training": {
                "epochs": 0.42, "global_batch_size": 16, "micro_batch_size": 16, "log_every_steps": 1
            },
            "eval": {"batch_size": 128},
            "checkpoint": {"path": str(root / "runs"), "every_steps": 4},
            "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
            "launch": {"use_gpu": False, "price_per_gpu_hour": 2.0, "currency": "EUR"},
        }
    )  # fmt: skip


class Dies(Callback):
    """An error after step 7."""

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        if state.step == 7:
            raise RuntimeError("killed")


def test_a_run_that_died_and_went_on_accounts_for_all_of_its_time(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(job(tmp_path), [Dies()])
    folder = tmp_path / "runs" / "tiny"
    run(job(tmp_path), [RunReport(folder)])
    assert [log.header.stop_step for log in read_logs(folder / "goodput")] == [12, 12]
    assert tag_history(journal_path(folder))[STEPS_TAG] == {"12"}
    found = account_of(folder)
    assert found is not None
    files = read_logs(folder / "goodput")
    assert [(f.header.attempt, f.header.parent, f.header.start_step) for f in files] == [(1, 0, 0), (2, 1, 4)]
    assert found.total_s == pytest.approx(found.wall_s)
    assert found.unrecorded_s == 0.0
    worked = set(TimeClass) - {TimeClass.IDLE, TimeClass.DATA_WAIT}
    assert all(found.seconds[kind] > 0.0 for kind in worked)
    (interruption,) = found.interruptions
    assert (interruption.cause, interruption.attempt) == ("unknown", 1)
    assert found.accuracy is not None and found.price is not None and found.price.currency == "EUR"

    told = metric_history(journal_path(folder))
    last = dict(told)[12]
    assert sum(last[f"goodput/{kind}"] for kind in TimeClass) == pytest.approx(1.0)
    assert last["cost/total"] > last["cost/last_failure"] > 0.0
    assert dict(told)[4].keys() >= {"goodput/restart", "cost/total"}  # at the second start, too
    table = json.loads((folder / "plots" / "goodput.json").read_text())
    # One figure, whoever is asked, and when.
    assert table["goodput"] == last["goodput/useful_step"] == found.goodput
    assert table["seconds"] == found.to_dict()["seconds"]
    assert f"{100 * found.goodput:.2f} %" in (folder / "report.html").read_text()
    artifacts = [line for line in journal_path(folder).read_text().splitlines() if '"artifact"' in line]
    assert sum("goodput" in line for line in artifacts) == 2
    assert sum("report.html" in line for line in artifacts) == 1
    assert all((folder / "plots" / f"{name}.png").stat().st_size > 1000 for name in ("goodput", "curves"))


class Moments:
    """A clock that only moves when told to, for PhaseClock and the callback."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.time", lambda: 1.8e9 + self.now)


class Heard:
    """Counts what reaches the beats behind the callback's."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None:
        self.calls.append(phase.name)

    def step_done(self, step: int, seconds: float) -> None:
        self.calls.append("step_done")

    def bear(self, seconds: float) -> None:
        self.calls.append("bear")


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Moments:
    return Moments(monkeypatch)


def listening(tmp_path: Path, clock: PhaseClock) -> GoodputLog:
    world = World(0, 0, 1, torch.device("cpu"))
    return GoodputLog(clock, RunFolder(tmp_path, "id"), world, LaunchSection())


def test_lines_come_after_saves_and_every_ten_seconds(tmp_path: Path, moments: Moments) -> None:
    heard = Heard()
    clock = PhaseClock(heard)
    log = listening(tmp_path, clock)
    log.on_start(TrainState(attempt=1), 100)
    writes: list[tuple[float, int, bool]] = []

    def write(step: int, metrics: Any = None, *, stays: bool = True) -> None:
        writes.append((moments.now, step, stays))

    log.line = write  # type: ignore[method-assign]
    moments.now = 120.0
    for step in range(25):  # a step a second, a save of 0.1 s after each tenth
        clock.enter(Phase.DATA, step=step)
        clock.enter(Phase.COMPUTE)
        moments.now += 1.0
        clock.step_done(step + 1, 1.0)
        with clock.during(Phase.CHECKPOINT):
            moments.now += 0.1 if (step + 1) % 10 == 0 else 0.0
    clock.bear(1.0)
    assert writes == [
        (120.0, 0, False),
        (130.0, 10, False),
        (130.1, 10, True),
        (140.1, 20, False),
        (140.2, 20, True),
    ]
    assert heard.calls.count("step_done") == 25 and heard.calls[-1] == "bear"
    log.close()
    assert clock.beats is heard


def test_a_rollback_begins_another_file_that_goes_on_counting(tmp_path: Path, moments: Moments) -> None:
    clock = PhaseClock()
    log = listening(tmp_path, clock)
    moments.now += 2.0
    log.on_start(TrainState(attempt=1), 100)
    clock.enter(Phase.COMPUTE, step=0)
    moments.now += 10.0
    clock.enter(Phase.UPDATE, step=10)
    bad = object.__new__(BadStep)
    object.__setattr__(bad, "action", Action.ROLLBACK)
    log.on_bad_step(bad, TrainState(step=10, attempt=1))
    with clock.during(Phase.CHECKPOINT):
        moments.now += 3.0
    log.on_start(TrainState(step=0, attempt=2), 100)
    clock.enter(Phase.COMPUTE, step=0)
    moments.now += 20.0
    log.on_end(TrainState(step=20, attempt=2))
    log.close()
    first, second = read_logs(tmp_path / "goodput")
    assert first.header.process == second.header.process
    assert second.lines[0].total == pytest.approx(15.0)
    found = account_of(tmp_path)
    assert found is not None
    spent = {str(kind): seconds for kind, seconds in found.seconds.items() if seconds}
    assert spent == pytest.approx({"restart": 5, "lost_work": 10, "useful_step": 20})
    (rollback,) = found.interruptions
    assert rollback.cause == "rollback"
    assert (rollback.restart_s, rollback.lost_s) == pytest.approx((3.0, 10.0))


def test_the_attempt_and_the_drivers_number_are_in_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVMLP_START", "7")
    log = listening(tmp_path, PhaseClock())
    log.on_start(TrainState(step=3, attempt=4), 100)
    log.close()
    log.close()
    (file,) = read_logs(tmp_path / "goodput")
    assert (file.header.start, file.header.attempt, file.header.start_step) == (7, 4, 3)
    assert goodput_callback._origin(tmp_path, TrainState(step=3, attempt=4)) == (0, 3)
