"""One server on the SQLite file of a root: the root is moved, backed up and restored around it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow_service import MlflowService
from unsent import replayed_here

from convmlp_platform.cli.main import main
from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.tracking.delivery_state import load_feed
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.tracker import Tracker

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_store_that_a_server_has_open_follows_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, backup = tmp_path / "old", tmp_path / "new", tmp_path / "backup"
    local = TrackingSection(uri=f"sqlite:///{old}/mlflow.db", experiment="here")
    run = old / "runs" / "one"
    with replayed_here():
        tracker = Tracker.open(local, run_dir=run, run_name="one")
        tracker.log_artifact(run / "tracking" / "target.json", "made")
        assert tracker.finish("FINISHED")
    open_client(local.uri or "").create_registered_model("toy")
    run_id = load_feed(run).run_id or ""
    old.rename(new)
    options = ["--artifacts-destination", str(new / "served")]
    with MlflowService(tmp_path / "server", f"sqlite:///{new}/mlflow.db", options) as server:
        client = open_client(server.uri)
        assert client.get_run(run_id).info.artifact_uri.startswith(old.as_uri())  # MLflow knows no better
        monkeypatch.setenv("CONVMLP_ROOT", str(new))
        assert main(["registry", "list", "--json"]) == 0
        assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["toy"]
        assert client.get_run(run_id).info.artifact_uri.startswith(new.as_uri())
        assert [one.path for one in client.list_artifacts(run_id, "made")] == ["made/target.json"]

        # A run on the server: its files go to the server, whose addresses are no place on a disk.
        served = TrackingSection(uri=server.uri, experiment="served")
        with replayed_here():
            tracker = Tracker.open(served, run_dir=new / "runs" / "two", run_name="two")
            tracker.log_artifact(new / "runs" / "two" / "tracking" / "target.json", "made")
            tracker.log_metrics({"loss": 1.0}, 1)
            assert tracker.finish("FINISHED")
        second = load_feed(new / "runs" / "two").run_id or ""
        address = client.get_run(second).info.artifact_uri
        assert address.startswith("mlflow-artifacts:/")

        backup.mkdir()  # while it runs, as docs/operations.md says it
        with (
            closing(sqlite3.connect(new / "mlflow.db")) as store,
            closing(sqlite3.connect(backup / "mlflow.db")) as copy,
        ):
            store.backup(copy)
        shutil.copytree(new / "mlartifacts", backup / "mlartifacts")
    monkeypatch.setenv("CONVMLP_ROOT", str(backup))
    assert main(["registry", "list"]) == 0
    client = open_client(f"sqlite:///{backup}/mlflow.db")
    assert client.get_run(run_id).info.artifact_uri.startswith(backup.as_uri())
    assert client.get_run(second).info.artifact_uri == address
    assert [point.value for point in client.get_metric_history(second, "loss")] == [1.0]
    assert not old.exists()
