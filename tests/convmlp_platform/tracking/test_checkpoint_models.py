"""Checkpoints in MLflow: one logged model each, however often and in whatever pieces the journal is sent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_tracking_replayer import record_run

from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import load_feed, save_feed
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointMetrics,
    CheckpointRetired,
    Dataset,
    MetricsRecord,
    Record,
)
from convmlp_platform.tracking.mlflow.checkpoint_models import list_models
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.replayer import Replayer, replay

DIGEST = "sha256:" + "ab" * 32


def committed(step: int, digest: str = "") -> CheckpointCommitted:
    facts = {"epoch": "1", "samples_seen": str(8 * step), "strategy": "ddp", "world_size": "2"}
    return CheckpointCommitted(location=place(step), digest=digest or f"d{step}", step=step, facts=facts)


def place(step: int) -> str:
    return f"/data/o'hara's runs/r/checkpoints/step-{step:09d}"


def evaluated(step: int, score: float, digest: str = "") -> list[Record]:
    """What a run's record and its checkpoint's have of one evaluation."""
    own = MetricsRecord(step=step, values={"eval/top1": score, "eval/loss": math.nan, "eval/b@d": math.inf})
    linked = CheckpointMetrics(
        time=own.time,
        location=place(step),
        digest=digest or f"d{step}",
        step=step,
        values=own.values,
        dataset="digits",
        dataset_digest=DIGEST,
    )
    return [own, linked]


def retired(step: int, digest: str = "") -> CheckpointRetired:
    return CheckpointRetired(location=place(step), digest=digest or f"d{step}", step=step, reason="newer")


def records() -> list[Record]:
    data = Dataset(name="digits", digest=DIGEST, source="/d", context="training")
    return [
        data,
        *(committed(2), *evaluated(2, 50.0)),
        *(committed(4), *evaluated(4, 70.0)),
        *(committed(6), retired(2), *evaluated(6, 60.0)),
        committed(8),
    ]


def models(store: TrackingSection, run_id: str) -> list[Any]:
    client = open_client(store.uri or "")
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    return sorted(found, key=lambda model: int(model.tags["step"]))


def assert_all_is_there_once(store: TrackingSection, run_dir: Path, run_id: str) -> None:
    found = models(store, run_id)
    assert [(model.name, model.tags["step"]) for model in found] == [
        (f"step-{step:09d}", str(step)) for step in (2, 4, 6, 8)
    ]
    assert [model.tags["state"] for model in found] == ["retired", "committed", "committed", "committed"]
    for model in found:
        step = int(model.tags["step"])
        assert (str(model.status), model.model_type, model.source_run_id) == ("READY", "checkpoint", run_id)
        assert model.params == {
            "step": str(step), "epoch": "1", "samples_seen": str(8 * step), "strategy": "ddp", "world_size": "2",
        }  # fmt: skip
        assert model.tags["location"] == place(step)
        assert model.tags["mlflow.model.isExternal"] == "true"
        points = {metric.key: metric for metric in model.metrics or ()}
        assert len(points) == len(model.metrics or ()) == (0 if step == 8 else 2)
        for metric in points.values():
            assert (metric.step, metric.dataset_name) == (step, "digits")
    scores = [{metric.key: metric.value for metric in model.metrics or ()} for model in found]
    assert [score.get("eval/top1") for score in scores] == [50.0, 70.0, 60.0, None]
    client = open_client(store.uri or "")
    run = client.get_run(run_id)
    outputs = sorted((one.step, one.model_id) for one in run.outputs.model_outputs)
    assert outputs == [(int(model.tags["step"]), model.model_id) for model in found]
    assert [point.step for point in client.get_metric_history(run_id, "eval/top1")] == [2, 4, 6]
    (dataset,) = run.inputs.dataset_inputs
    assert found[0].metrics[0].dataset_digest == dataset.dataset.digest
    listed = list_models(run_dir, "eval/top1")
    assert [(row.step, row.state) for row in listed] == [
        (4, "committed"), (6, "committed"), (2, "retired"), (8, "committed"),
    ]  # fmt: skip
    assert listed[0].metrics["eval/top1"] == 70.0


def test_what_is_sent_again_changes_nothing(store: TrackingSection, run_dir: Path) -> None:
    record_run(run_dir, store, *records())
    run_id = replay(run_dir)
    assert_all_is_there_once(store, run_dir, run_id)
    before = [model.to_dictionary() for model in models(store, run_id)]
    save_feed(run_dir, load_feed(run_dir).model_copy(update={"values": 0}))  # killed before it knew
    assert replay(run_dir) == run_id
    assert_all_is_there_once(store, run_dir, run_id)
    stamps = {"last_updated_timestamp_ms", "last_updated_timestamp"}
    after = [model.to_dictionary() for model in models(store, run_id)]
    assert [{k: v for k, v in one.items() if k not in stamps} for one in after] == [
        {k: v for k, v in one.items() if k not in stamps} for one in before
    ]


CALLS = ("create_logged_model", "log_outputs", "finalize_logged_model", "set_logged_model_tags", "log_batch")


@pytest.mark.parametrize(
    ("call", "answered"),
    [
        ("create_logged_model", True),
        ("log_batch", True),
        ("create_logged_model", False),
        *(pytest.param(call, True, marks=pytest.mark.slow) for call in CALLS[1:-1]),
    ],
)
def test_a_server_that_goes_away_in_any_request_costs_nothing(
    store: TrackingSection, run_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str, answered: bool
) -> None:
    """It refuses, or has done (`answered`) what was asked while the answer got lost; the sender dies each time."""
    from mlflow import MlflowClient

    record_run(run_dir, store, *records())
    send, down = getattr(MlflowClient, call), [1, 3, 4]

    def away(client: Any, *args: Any, **named: Any) -> Any:
        down[:] = [calls - 1 for calls in down]
        result = send(client, *args, **named) if answered or 0 not in down else None
        if 0 in down:
            raise ConnectionError("the server went away")
        return result

    monkeypatch.setattr(MlflowClient, call, away)
    replayer, failures = Replayer(run_dir, store.uri or ""), 0
    while True:
        try:
            if not replayer.advance():
                break
        except ConnectionError:
            failures += 1
            replayer = Replayer(run_dir, store.uri or "")
    assert failures == (1 if call == "set_logged_model_tags" else 3)
    assert_all_is_there_once(store, run_dir, str(load_feed(run_dir).run_id))


def test_a_deleted_run_gets_its_models_anew(store: TrackingSection, run_dir: Path) -> None:
    record_run(run_dir, store, *records())
    first = replay(run_dir)
    open_client(store.uri or "").delete_run(first)
    record_run(run_dir, store, MetricsRecord(step=9, values={"loss": 1.0}))
    second = replay(run_dir)
    assert second != first
    assert_all_is_there_once(store, run_dir, second)


def test_a_step_done_again_has_a_model_of_its_own(store: TrackingSection, run_dir: Path) -> None:
    record_run(
        run_dir, store, committed(2, "a"), *evaluated(2, 10.0, "a"), retired(2, "a"),
        committed(2, "b"), *evaluated(2, 20.0, "b"),
    )  # fmt: skip
    replay(run_dir)
    found = [(row.state, row.metrics["eval/top1"]) for row in list_models(run_dir, "eval/top1")]
    assert found == [("committed", 20.0), ("retired", 10.0)]


def test_a_model_that_was_deleted_holds_nothing_up(
    store: TrackingSection, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_run(run_dir, store, committed(2))
    run_id = replay(run_dir)
    (model,) = models(store, run_id)
    client = open_client(store.uri or "")
    client.delete_logged_model(model.model_id)
    record_run(run_dir, store, *evaluated(2, 10.0), retired(2))
    replay(run_dir)
    assert "MLflow has no such model (any more)" in caplog.text
    assert [point.value for point in client.get_metric_history(run_id, "eval/top1")] == [10.0]


def test_a_server_older_than_models_gets_the_rest(
    store: TrackingSection, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    def unknown(*_: object, **__: object) -> None:
        raise MlflowException("404", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "search_logged_models", unknown)
    record_run(run_dir, store, *records())
    run_id = replay(run_dir)
    assert len(open_client(store.uri or "").get_metric_history(run_id, "eval/top1")) == 3


def test_a_run_that_was_never_sent_says_how(store: TrackingSection, run_dir: Path) -> None:
    record_run(run_dir, store, committed(2))
    with pytest.raises(TrackingError, match="convmlp replay-tracking"):
        list_models(run_dir, "eval/top1")
