"""The runs that MLflow knows: those of training, one experiment's or all, with their best evaluation."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from convmlp_platform.cli.main import main
from convmlp_platform.overview.mlflow_runs import mlflow_runs
from convmlp_platform.tracking.mlflow.client import open_client


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    return uri


def test_what_mlflow_was_told(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--mlflow"]) == 2
    assert "there is no MLflow at" in capsys.readouterr().err
    client = open_client(store)
    first, other = client.create_experiment("first"), client.create_experiment("other")
    tags = {"world_size": "8", "steps": "1000", "checkpoint.step": "500"}
    run = client.create_run(first, tags=tags, run_name="coco").info.run_id
    client.log_param(run, "task.name", "retinanet")
    for step, value in ((100, 20.0), (200, 25.0), (300, 24.0), (400, float("nan"))):
        client.log_metric(run, "eval/box_ap", value, step=step)
    client.log_metric(run, "goodput/useful_step", 0.9, step=400)
    client.create_run(first, run_name="preparation")
    ended = client.create_run(other, tags={"world_size": "1"}, run_name="new").info.run_id
    client.set_terminated(ended, "FAILED")
    (row,) = mlflow_runs("first")
    assert (row.name, row.place, row.state, row.workers) == ("coco", run, "running", 8)
    assert (row.step, row.steps, row.saved, row.goodput) == (500, 1000, 500, 0.9)
    assert (row.metric, row.best) == ("box_ap", 25.0)
    assert row.seen == pytest.approx(time.time(), abs=120)
    assert {(row.name, row.state, row.step) for row in mlflow_runs()} == {
        ("coco", "running", 500),
        ("new", "died", None),
    }
    assert main(["runs", "--mlflow", "other", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "new"
    assert main(["runs", "--mlflow", "third"]) == 2
    assert "has no experiment 'third': it has Default, first, other" in capsys.readouterr().err
