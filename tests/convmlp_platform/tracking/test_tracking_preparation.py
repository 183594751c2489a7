"""A finished preparation in MLflow: whole, once, later where no server was there, and never in the way."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from prepared import digits
from test_tracking_server import free_port
from unsent import replayed_here

from convmlp_platform.config.sections.execution import TrackingSection, TrackingTarget
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.finished_work import Preparation, PreparationTracker
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.replayer import replay
from data_prep.dataset.manifest import load_manifest

PARAMS = {"name": "prep", "source.kind": "digits", "output.formats": '["webdataset"]', "tracking.uri": None}


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    folder = Path(shutil.copytree(digits(), tmp_path / "digits"))
    picture = folder / "pictures" / "digits-train-sheet.png"
    picture.parent.mkdir()
    picture.write_bytes(b"a picture")
    artifacts = ((folder / "rejected.jsonl", ""), (folder / "pictures", "pictures"))
    return Preparation("prep", PARAMS, folder, load_manifest(folder), 20.0, artifacts)


def target(store: TrackingSection, experiment: str) -> TrackingTarget:
    return TrackingTarget(uri=store.uri, experiment=experiment, tags={"team": "vision"})


def test_a_run_holds_all_of_a_preparation_and_is_logged_once(
    store: TrackingSection, preparation: Preparation
) -> None:
    section = target(store, "once")
    tracker = PreparationTracker(section, preparation)
    assert tracker.logged_run() is None
    tracker.record(preparation)
    run_id = tracker.send(timeout=120)
    client = open_client(store.uri or "")
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("prep", "FINISHED")
    assert run.info.end_time - run.info.start_time == 20_000
    assert run.data.params["source.kind"] == "digits"
    assert run.data.tags["team"] == "vision" and run.data.tags["identity"] == preparation.identity
    assert run.data.metrics["samples"] == 1797 and run.data.metrics["samples/val"] == 359
    assert run.data.metrics["images_per_second"] == pytest.approx(1797 / 20)
    (used,) = run.inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in used.tags}
    assert tags == {"mlflow.data.context": "preparation", "digest": preparation.manifest.digest}
    assert {item.path for item in client.list_artifacts(run_id)} == {
        "manifest.json",
        "rejected.jsonl",
        "pictures",
    }
    assert [item.path for item in client.list_artifacts(run_id, "pictures")] == [
        "pictures/digits-train-sheet.png"
    ]

    # The job is started again over its finished dataset; then its folder has forgotten; both find the run.
    again = PreparationTracker(section, replace(preparation, seconds=None))
    assert again.logged_run() == run_id
    shutil.rmtree(preparation.folder / "tracking")
    assert again.logged_run() is None
    again.record(replace(preparation, seconds=None))
    with replayed_here():
        assert again.send(timeout=120) == run_id
    experiment = client.get_experiment_by_name("once")
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_another_job_over_the_same_data_is_another_run(
    store: TrackingSection, preparation: Preparation
) -> None:
    other = replace(preparation, params=PARAMS | {"source.kind": "image_folder"})
    elsewhere = replace(preparation, params=PARAMS | {"tracking.uri": "x", "launch.address": "local"})
    assert other.identity != preparation.identity == elsewhere.identity
    section = target(store, "others")
    runs = []
    for one in (preparation, other):
        tracker = PreparationTracker(section, one)
        tracker.record(one)
        with replayed_here():
            runs.append(tracker.send(timeout=120))
    assert runs[0] != runs[1]


def test_a_dead_server_costs_one_line_and_a_live_one_gets_it_later(
    store: TrackingSection, preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    section = TrackingTarget(uri=f"http://user:secret@127.0.0.1:{port}", experiment="late")
    tracker = PreparationTracker(section, preparation)
    tracker.record(preparation)
    with pytest.raises(TrackingError) as error:
        tracker.send(timeout=120)
    assert str(error.value) == (
        f"MLflow at http://127.0.0.1:{port} doesn't have this preparation yet ([Errno 111] Connection refused); "
        f"`convmlp replay-tracking {preparation.folder}` sends it"
    )
    assert tracker.is_recorded and tracker.logged_run() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri or "")
    run_id = replay(preparation.folder)
    client = open_client(store.uri or "")
    assert client.get_run(run_id).data.metrics["samples"] == 1797
    assert tracker.logged_run() == run_id
    assert {item.path for item in client.list_artifacts(run_id)} >= {"manifest.json", "pictures"}


def test_a_server_that_never_answers_is_asked_for_seconds_only(preparation: Preparation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        section = TrackingTarget(uri=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        tracker = PreparationTracker(section, preparation)
        tracker.record(preparation)
        with pytest.raises(TrackingError, match="timed out"):
            tracker.send(timeout=120)


def test_a_folder_that_cannot_be_written_is_said(preparation: Preparation, store: TrackingSection) -> None:
    (preparation.folder / "tracking").write_text("a file")
    with pytest.raises(TrackingError, match="this preparation can't be recorded in"):
        PreparationTracker(target(store, "no"), preparation).record(preparation)
