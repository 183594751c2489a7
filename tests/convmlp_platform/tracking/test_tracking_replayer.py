from __future__ import annotations

import math
from pathlib import Path

import pytest

from convmlp_platform.config.sections import TrackingSection
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.journal import Artifact, Dataset, Journal, Metrics, Params, Record, Status
from convmlp_platform.tracking.replayer import Replayer, replay
from convmlp_platform.tracking.state import (
    Target,
    journal_path,
    load_feed,
    load_target,
    save_feed,
    save_target,
    without_secrets,
)
from convmlp_platform.tracking.store import open_client


def record_run(run_dir: Path, store: TrackingSection, *records: Record) -> None:
    journal = Journal(journal_path(run_dir))
    for record in records:
        journal.append(record)
    journal.close()
    try:
        load_target(run_dir)
    except TrackingError:
        save_target(run_dir, Target(uri=store.uri or "", experiment=store.experiment, run_name="r"))


def losses(count: int) -> list[Record]:
    return [
        Metrics(step=step, values={"loss": step / 7, "nan": math.nan, "b@d": math.inf})
        for step in range(count)
    ]


def test_records_arrive_once_however_often_they_are_sent(store: TrackingSection, run_dir: Path) -> None:
    plot = run_dir / "curve.txt"
    run_dir.mkdir()
    plot.write_text("curve")
    records = [
        *losses(1200),
        Params(values={"optimizer.lr": "0.1"}),
        Artifact(source=str(plot), folder="plots"),
    ]
    record_run(
        run_dir,
        store,
        *records,
        Dataset(name="d", digest="sha256:" + "ab" * 32, source="/d", context="training"),
    )
    run_id = replay(run_dir)
    save_feed(
        run_dir, load_feed(run_dir).model_copy(update={"values": 0, "artifacts": 0})
    )  # killed before it knew
    assert replay(run_dir) == run_id

    client = open_client(store.uri or "")
    for key in ("loss", "nan", "b_d"):
        assert [m.step for m in client.get_metric_history(run_id, key)] == list(range(1200))
    run = client.get_run(run_id)
    assert run.data.params == {"optimizer.lr": "0.1"}
    assert [file.path for file in client.list_artifacts(run_id, "plots")] == ["plots/curve.txt"]
    (dataset,) = run.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in dataset.tags}["digest"] == "sha256:" + "ab" * 32


def test_a_lost_answer_makes_no_second_run(store: TrackingSection, run_dir: Path) -> None:
    record_run(run_dir, store, *losses(3))
    run_id = replay(run_dir)
    (run_dir / "tracking" / "feed.json").unlink()
    assert replay(run_dir) == run_id


def test_a_deleted_run_is_made_anew_with_its_whole_history(
    store: TrackingSection, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_run(run_dir, store, *losses(5))
    client = open_client(store.uri or "")
    first = replay(run_dir)
    client.delete_run(first)
    record_run(run_dir, store, *losses(2))
    second = replay(run_dir)
    assert second != first and first in caplog.text
    assert len(client.get_metric_history(second, "loss")) == 7


def test_a_param_changed_by_a_restart_is_kept_as_a_tag(store: TrackingSection, run_dir: Path) -> None:
    record_run(run_dir, store, Params(values={"launch.num_workers": "2"}), Status(status="FAILED"))
    run_id = replay(run_dir)
    record_run(
        run_dir, store, Status(status="RUNNING"), Params(values={"launch.num_workers": "4", "new": "1"})
    )
    assert replay(run_dir) == run_id
    run = open_client(store.uri or "").get_run(run_id)
    assert run.data.params == {"launch.num_workers": "2", "new": "1"}
    assert run.data.tags["changed.launch.num_workers"] == "4"
    assert run.info.status == "RUNNING"


def test_a_missing_artifact_holds_nothing_up(
    store: TrackingSection, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_run(run_dir, store, Artifact(source="/no/such/plot.png"), *losses(2))
    replayer = Replayer(run_dir, store.uri or "")
    while replayer.advance():
        pass
    assert replayer.pending_bytes == 0
    assert "/no/such/plot.png" in caplog.text


def test_replay_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="no tracked run"):
        replay(tmp_path)


def test_no_password_is_stored() -> None:
    assert without_secrets("https://me:pw@host:5000/x") == "https://host:5000/x"
    assert without_secrets("sqlite:////a/b.db") == "sqlite:////a/b.db"
