"""The bar of a training's steps: it follows the run, back too, and there is none in a pipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prepared import few_digits

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.jobs.training_job import step_bar
from data_prep import console

JOB = TrainJob.model_validate(
    {
        "kind": "train",
        "name": "it",
        "model": {"name": "convmlp_tiny"},
        "data": {"path": "x", "image_size": 32},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 1, "max_steps": 12, "global_batch_size": 16, "micro_batch_size": 8},
    }
)


def test_a_bar_is_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    @contextmanager
    def bar(*what: Any) -> Iterator[console.ProgressBar]:
        drawn.append(what)
        yield console.ProgressBar(True, drawn.append)

    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setattr(console, "progress_bar", bar)
    job = JOB.model_copy(update={"data": JOB.data.model_copy(update={"path": str(few_digits())})})
    with step_bar(job) as at_step:
        for step in (0, 3, 3, 8, 0, 6, 12):  # killed at 8, goes on from 6
            at_step(step)
    assert drawn == [("training", 12, "steps"), 3, 5, -2, 6]
    with step_bar(job, is_shown=False) as at_step:
        at_step(1)
    assert len(drawn) == 5


def test_there_is_none_in_a_pipe_and_no_dataset_is_opened_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    with step_bar(JOB) as at_step:
        at_step(1)
    assert capsys.readouterr() == ("", "")
