from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import (
    Target,
    feed_lock,
    journal_path,
    load_feed,
    load_target,
    save_feed,
    save_target,
    without_secrets,
)
from convmlp_platform.tracking.finished_work import sent_to
from convmlp_platform.tracking.journal import (
    Artifact,
    Dataset,
    Journal,
    MetricsRecord,
    Params,
    Record,
    Status,
)
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.replayer import Replayer, replay
from data_prep.storage.locks import living_holder


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
        MetricsRecord(step=step, values={"loss": step / 7, "nan": math.nan, "b@d": math.inf})
        for step in range(count)
    ]


def test_records_arrive_once_however_often_they_are_sent(store: TrackingSection, run_dir: Path) -> None:
    plot = run_dir / "curve.txt"
    run_dir.mkdir()
    plot.write_text("curve")
    records = [
        *losses(400),
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
        assert [m.step for m in client.get_metric_history(run_id, key)] == list(range(400))
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


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:pw@host:5000/x", "https://host:5000/x"),
        ("https://me:p/w?@host:5000/x", "https://host:5000/x"),
        ("https://me:p@w@host", "https://host"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("http://[::1", "http://[::1"),
        ("https://host:5000/a@b", "https://host:5000/a@b"),
        ("sqlite:////a/b@c:d@e.db", "sqlite:////a/b@c:d@e.db"),
        ("postgresql://me:pw@host/db?sslmode=require&password=pw", "postgresql://host/db?sslmode=require"),
    ],
)
def test_no_password_is_stored(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


class Counted:
    """MLflow's `log_batch`, counted; the call `fails` is refused by a server in trouble, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: int = 0) -> None:
        from mlflow import MlflowClient  # not by each test worker, which it would cost 3 s

        self.metrics: list[int] = []
        send = MlflowClient.log_batch

        def log_batch(client: Any, run_id: str, **items: Any) -> None:
            if len(self.metrics) + 1 == fails:
                self.metrics.append(0)
                raise ConnectionError("the server went away")
            self.metrics.append(len(items.get("metrics", ())))
            send(client, run_id, **items)

        monkeypatch.setattr(MlflowClient, "log_batch", log_batch)


def test_a_batch_that_was_sent_is_not_sent_again(
    store: TrackingSection, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_run(run_dir, store, *losses(1000))
    sent = Counted(monkeypatch, fails=3)
    with pytest.raises(TrackingError, match="the server went away"):
        replay(run_dir)
    before = load_feed(run_dir).values
    assert 0 < before < journal_path(run_dir).stat().st_size
    replay(run_dir)
    assert sent.metrics == [999, 999, 0, 999, 3]


def test_the_end_is_sent_when_nothing_else_is_left(
    store: TrackingSection, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plot = tmp_path / "plot.txt"
    plot.write_text("plot")
    end = Status(status="FINISHED", time=1_700_000_000_000)
    record_run(run_dir, store, *losses(2), Artifact(source=str(plot)), end)

    def refuse(*_: object) -> None:
        raise ConnectionError("the store is away")

    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="the store is away"):
        patch.setattr("mlflow.MlflowClient.log_artifact", refuse)
        replay(run_dir)
    state, client = load_feed(run_dir), open_client(store.uri or "")
    assert client.get_run(str(state.run_id)).info.status == "RUNNING"
    assert state.end == end and sent_to(run_dir) is None
    run = client.get_run(replay(run_dir))
    assert (run.info.status, run.info.end_time) == ("FINISHED", end.time)
    assert sent_to(run_dir) == run.info.run_id


def test_an_end_that_was_not_the_last_is_never_sent(
    store: TrackingSection, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "mlflow.MlflowClient.set_terminated", lambda *arguments, **_: said.append(arguments[2])
    )
    record_run(run_dir, store, Status(status="FAILED"), Status(status="RUNNING"), *losses(1))
    replay(run_dir)
    assert said == []
    record_run(run_dir, store, Status(status="KILLED"))
    assert open_client(store.uri or "").get_run(replay(run_dir)).info.status == "RUNNING"
    assert said == ["KILLED"]


def test_params_of_a_restart_sent_at_once_keep_the_first_value(store: TrackingSection, run_dir: Path) -> None:
    record_run(run_dir, store, Params(values={"lr": "1"}), Params(values={"lr": "2"}))
    run = open_client(store.uri or "").get_run(replay(run_dir))
    assert (run.data.params["lr"], run.data.tags["changed.lr"]) == ("1", "2")


FEEDS = """
import sys, time
from pathlib import Path
from convmlp_platform.tracking.mlflow.feeder import Feeder
feeder = Feeder(Path(sys.argv[1]), sys.argv[2])
feeder.ensure_alive()
print(feeder._process.pid, flush=True)
time.sleep(600)
"""


def test_a_stopped_replayer_is_named_and_killed_once_its_run_is_gone(
    store: TrackingSection, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_run(run_dir, store, *losses(2))
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # so that it doesn't end before it is stopped
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        parent = subprocess.Popen([sys.executable, "-c", FEEDS, str(run_dir), uri], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        replayer = int(parent.stdout.readline())
        try:
            until = time.monotonic() + 60
            while living_holder(feed_lock(run_dir).path) is None:
                assert time.monotonic() < until
                time.sleep(0.01)
            os.kill(replayer, signal.SIGSTOP)
            while "stopped" not in str(living_holder(feed_lock(run_dir).path)):
                assert time.monotonic() < until
            with pytest.raises(
                TrackingError, match=rf"process {replayer} .*`kill -CONT .*: the run is alive"
            ):
                replay(run_dir)
        finally:
            parent.kill()
            parent.wait()
            parent.stdout.close()
        run_id = replay(run_dir)
        assert len(open_client(store.uri or "").get_metric_history(run_id, "loss")) == 2
        assert f"process {replayer}, left stopped by one that has ended, is killed" in caplog.text
