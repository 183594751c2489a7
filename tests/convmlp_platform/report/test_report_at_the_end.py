"""The report of a run that has just ended: an artifact of its record, and never a reason for anything else."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from page_checker import checked
from whole_run import write_all

from convmlp_platform.errors import ConfigError
from convmlp_platform.report import page, report_callback
from convmlp_platform.report.report_callback import RunReport
from convmlp_platform.training.step_plan import TrainState


class Kept:
    """A tracker that remembers what it got."""

    def __init__(self) -> None:
        self.got: list[Path] = []

    def log_artifact(self, path: Path, folder: str = "") -> None:
        assert folder == ""
        self.got.append(path)


def test_it_is_written_and_recorded_on_rank_0(tmp_path: Path) -> None:
    run, tracker = write_all(tmp_path / "run"), Kept()
    RunReport(run).on_closed(TrainState(), None)
    assert not (run / "report.html").exists()
    RunReport(run).on_closed(TrainState(), tracker)  # type: ignore[arg-type]
    assert tracker.got == [run / "report.html"]
    checked((run / "report.html").read_bytes())


@pytest.mark.parametrize("error", [ConfigError("the disk is full"), ZeroDivisionError("a bug")])
def test_what_it_fails_of_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> Path:
        raise error

    monkeypatch.setattr(page, "write_report", fails)
    tracker = Kept()
    with caplog.at_level(logging.WARNING):
        RunReport(tmp_path).on_closed(TrainState(), tracker)  # type: ignore[arg-type]
    assert tracker.got == [] and str(error) in caplog.text and "convmlp report" in caplog.text


def test_it_is_not_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = threading.Event()
    monkeypatch.setattr(report_callback, "PATIENCE_S", 0.05)
    monkeypatch.setattr(page, "write_report", lambda *_, **__: free.wait(30.0))
    tracker, began = Kept(), time.monotonic()
    with caplog.at_level(logging.WARNING):
        RunReport(tmp_path).on_closed(TrainState(), tracker)  # type: ignore[arg-type]
    free.set()
    assert time.monotonic() - began < 10.0
    assert tracker.got == [] and "not done after" in caplog.text
