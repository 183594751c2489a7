"""A sweep on a real Ray, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prepared import digits
from ray_site import REPOSITORY, clean_environment

TIMEOUT_S = 280.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Sweep:
    """`convmlp sweep FILE` over small networks on the digits, on a Ray of its own."""

    def __init__(self, root: Path, **values: Any) -> None:
        self.root, self.folder = root, root / "runs" / "s"
        self.environment = clean_environment(root, root)
        job = {
            "kind": "train",
            "name": "base",
            "model": {"name": "convmlp_tiny"},
            "data": {"path": str(digits()), "image_size": 32, "num_workers": 0},
            "augment": {"crop": "none", "hflip": 0.0},
            "eval": {"crop_pct": 1.0, "batch_size": 120},
            "optimizer": {"lr": 2e-3},
            "training": {
                "epochs": 3, "global_batch_size": 64, "micro_batch_size": 64, "log_every_steps": 5,
            },
            "launch": {"use_gpu": False},
        }  # fmt: skip
        self.file = root / "sweep.yaml"
        self.file.write_text(yaml.safe_dump({"kind": "sweep", "name": "s", "job": job} | values))

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "convmlp_platform", "sweep", str(self.file)],
            env=self.environment, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self) -> tuple[int, str]:
        process = self.start()
        output, _ = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, output

    def end(self, trial: str) -> dict[str, Any] | None:
        path = self.folder / trial / "trial.json"
        return json.loads(path.read_text()) if path.exists() else None

    def starts(self, trial: str) -> int:
        return sum(event["kind"] == "driver_started" for event in self.events(trial))

    def events(self, trial: str) -> list[dict[str, Any]]:
        path = self.folder / trial / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def result(self) -> dict[str, dict[str, Any]]:
        values = json.loads((self.folder / "result.json").read_text())
        return {row["trial"]: row for row in values["trials"]}


def wait(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert process.poll() is None or happened(), process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def checkpoint_of(sweep: Sweep, trial: str) -> bool:
    return (sweep.folder / trial / "checkpoints" / "latest").exists()


def test_a_killed_sweep_goes_on_and_a_failed_trial_stops_no_other(tmp_path: Path) -> None:
    sweep = Sweep(
        tmp_path,
        max_concurrent=1,
        variants=[
            {"name": "first", "set": {"training.epochs": 1}},
            # Its loss is not finite from the first step on.
            {"name": "broken", "set": {"optimizer.lr": 1e30, "guard.on_non_finite": "stop", "optimizer.name": "sgd"}},
            {"name": "second", "set": {"training.epochs": 12, "seed": 3}},
        ],
    )  # fmt: skip
    process = sweep.start()
    wait(lambda: checkpoint_of(sweep, "second"), process)
    process.kill()
    process.communicate()
    assert (sweep.end("first"), sweep.end("second")) != (None, None)
    assert sweep.end("first")["status"] == "finished"  # type: ignore[index]
    assert sweep.end("second") is None

    code, output = sweep.run()
    assert code == 1, output
    assert "3 trials, 1 of them done before, 1 at a time on a local Ray" in output
    assert "error: trial broken: run broken: step" in output
    assert sweep.starts("first") == 1
    assert sweep.starts("second") == 2
    (resumed,) = [event for event in sweep.events("second") if event["kind"] == "attempt_running"][1:]
    assert resumed["step"] > 0, "it began anew"
    rows = sweep.result()
    assert list(rows)[-1] == "broken" and rows["broken"]["status"] == "failed"
    assert rows["broken"]["reason"].startswith("run broken: step")
    assert rows["first"]["score"] is not None and rows["second"]["score"] > 50
    assert "| broken " in (sweep.folder / "table.md").read_text()
    assert (sweep.folder / "trade_off.png").read_bytes().startswith(b"\x89PNG")
    _check_mlflow(tmp_path)


def _check_mlflow(root: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("convmlp")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"s", "first", "broken", "second"}
    parent = runs["s"].info.run_id
    for name in ("first", "second"):
        tags = runs[name].data.tags
        assert (tags["sweep"], tags["trial"], tags["mlflow.parentRunId"]) == ("s", name, parent)
    assert runs["s"].data.metrics["second/eval/top1"] > 50
    artifacts = {item.path for item in client.list_artifacts(parent)}
    assert artifacts == {"table.md", "result.json", "trade_off.png"}


def test_a_stopped_sweep_has_saved_and_ashas_choice_is_remembered(tmp_path: Path) -> None:
    sweep = Sweep(
        tmp_path,
        space={"optimizer.lr": [3e-3, 1e-8]},
        set={"training.epochs": 9},
        scheduler={"name": "asha", "grace_epochs": 2, "reduction": 2},
        max_concurrent=1,
    )
    process = sweep.start()
    wait(lambda: checkpoint_of(sweep, "trial-000"), process)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "SIGTERM: the running trials save and stop" in output
    assert "stopped by SIGTERM; the same command goes on with the sweep" in output
    stopped = [event for event in sweep.events("trial-000") if event["kind"] == "attempt_ended"][-1]
    assert stopped["cause"] == "stopped" and sweep.end("trial-000") is None

    code, output = sweep.run()
    assert code == 0, output
    good, bad = sweep.end("trial-000"), sweep.end("trial-001")
    assert good is not None and good["status"] == "finished"
    assert bad is not None and bad["status"] == "stopped" and bad["steps"] < good["steps"]
    assert "trial trial-001 is stopped, as others do better" in output
    assert sweep.starts("trial-000") == 2

    code, output = sweep.run()
    assert code == 0, output
    assert sweep.starts("trial-000") == 2 and sweep.starts("trial-001") == 1
    assert "on a local Ray" not in output
