"""A run, its checkpoints and its model on real servers: MLflow on PostgreSQL and S3, with log-in and TLS.

One story in parts, each of which goes on where the one before ended.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
import torch
from mlflow_service import ADMIN, BUCKET, PASSWORD, MlflowService
from postgres_server import Postgres
from prepared import few_digits
from private_authority import private_authority
from unsent import replayed_here

from convmlp_platform.cli.main import main
from convmlp_platform.config.sections.execution import RegisterSection, TrackingSection
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import WEIGHTS_NAME, load_bundle, write_bundle
from convmlp_platform.registry.registry import register_bundle, resolve
from convmlp_platform.tracking.delivery_state import journal_path, load_feed
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointMetrics,
    CheckpointRetired,
    MetricsRecord,
    read_chunk,
)
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.limits import valid_key
from convmlp_platform.tracking.mlflow.replayer import replay
from convmlp_platform.tracking.tracker import Tracker

pytestmark = [pytest.mark.services, pytest.mark.slow, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).resolve().parents[2]
JOB = REPOSITORY / "jobs" / "pretrain_digits.yaml"
NAME = "digits-served"


def values_of(root: Path, **more: object) -> list[str]:
    """`--set` for a short run that saves often."""
    values: dict[str, object] = {
        "name": "watched",
        "data.path": few_digits(),
        "training.epochs": 6,
        "eval.every_epochs": 2,
        "checkpoint.every_steps": 10,
        "checkpoint.keep": 2,
        "launch.num_workers": 1,
        "training.log_every_steps": 1,
        "tracking.experiment": "services",
        "tracking.register_as": "{name: %s}" % NAME,  # noqa: UP031
    } | more
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


def recorded_steps(run: Path) -> int:
    return sum(isinstance(one, MetricsRecord) for one in read_chunk(journal_path(run)).records)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"it didn't come to that: {process.communicate()}")
        time.sleep(0.1)


def test_a_server_that_is_killed_amid_a_run_costs_nothing(
    as_user: MlflowService, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(root))
    run = root / "runs" / "watched"
    command = [sys.executable, "-m", "convmlp_platform", "run", "--no-ray", str(JOB), *values_of(root)]
    with started(command, root) as process:
        out, err = trained_beside_a_killed_server(process, run, as_user)
    assert process.returncode == 0, err
    assert "takes nothing now" in err and "is back after" in err
    assert PASSWORD not in out + err and "Traceback" not in err
    assert f"models:/{NAME}@candidate" in out, out
    expect_whole_run(as_user, run)


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=folder, text=True, **pipes)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()  # a stopped one, too
        process.wait()


def trained_beside_a_killed_server(
    process: subprocess.Popen[str], run: Path, server: MlflowService
) -> tuple[str, str]:
    # Training stands still while others get ready: so it is amid its steps on any machine. What sends goes on.
    wait_until(lambda: recorded_steps(run) >= 10, process)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: load_feed(run).values > 0, process)
    server.kill()
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: recorded_steps(run) >= 25, process)
    process.send_signal(signal.SIGSTOP)
    server.start()
    process.send_signal(signal.SIGCONT)
    return process.communicate(timeout=900)


def expect_whole_run(server: MlflowService, run: Path) -> None:
    """MLflow has each metric and each checkpoint of the journal once."""
    state, records = load_feed(run), read_chunk(journal_path(run), max_bytes=1 << 30).records
    assert state.has_all(journal_path(run).stat().st_size)
    client = open_client(server.uri)
    (one,) = client.search_runs([client.get_experiment_by_name("services").experiment_id])
    assert one.info.run_id == state.run_id and one.info.status == "FINISHED"
    told = defaultdict(list)
    for record in records:
        if isinstance(record, MetricsRecord):
            for name, value in record.values.items():
                told[valid_key(name)].append((record.step, value))
    assert len(told["train/loss"]) > 40
    for name, points in told.items():
        known = [(point.step, point.value) for point in client.get_metric_history(one.info.run_id, name)]
        assert sorted(known) == sorted(points), name

    committed = {one.location: one for one in records if isinstance(one, CheckpointCommitted)}
    retired = {one.location for one in records if isinstance(one, CheckpointRetired)}
    metrics = {one.location: one for one in records if isinstance(one, CheckpointMetrics)}
    found = client.search_logged_models([one.info.experiment_id], "model_type = 'checkpoint'", max_results=50)
    assert sorted(model.tags["location"] for model in found) == sorted(committed)
    assert len(committed) >= 4 and len(committed) - len(retired) == 2 and len(metrics) == 3
    for model in found:
        place = model.tags["location"]
        assert model.tags["state"] == ("retired" if place in retired else "committed")
        of_model = {metric.key: metric.value for metric in model.metrics or ()}
        assert of_model == (metrics[place].values if place in metrics else {})


def test_the_registry_answers_all_its_commands(
    as_user: MlflowService, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(root))

    def said(*words: str, code: int = 0) -> str:
        assert main([*words]) == code, capsys.readouterr()
        return capsys.readouterr().out

    def registry(action: str, *words: str, code: int = 0) -> str:
        return said("registry", action, *([] if action == "list" else [NAME]), *words, code=code)

    (listed,) = json.loads(registry("list", "--json"))
    assert listed == {"name": NAME, "versions": 1, "aliases": {"candidate": "1"}}
    # What training registered is far better than chance; the same again is no better than itself.
    assert "1" in registry("promote", "--data", str(few_digits()))
    assert json.loads(registry("list", "--json"))[0]["aliases"] == {"candidate": "1", "champion": "1"}
    bundle = root / "runs" / "watched" / "best"
    model, spec = load_bundle(bundle)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    write_bundle(root / "other", model.state_dict(), spec)
    section = TrackingSection(experiment="services", register_as=RegisterSection(name=NAME))
    image = next(iter_images(root))
    other = register_bundle(
        section, run_id=None, bundle=root / "other", example_image=image.read_bytes(), metrics={"top1": 99.0}, tags={}
    )  # fmt: skip
    assert other.version == "2"
    refused = registry(
        "promote", "--data", str(few_digits()), "--set", "rules.allow_unknown_training_data=true", code=3
    )
    assert "refused" in refused
    open_client(as_user.uri).set_registered_model_alias(NAME, "champion", "2")
    registry("adopt", "--why", "set by hand")
    registry("rollback", "--why", "worse at night")
    history = json.loads(registry("history", "--json"))
    assert [entry["kind"] for entry in history] == ["promoted", "refused", "adopted", "rolled back"]
    assert registry("champion").strip() == f"models:/{NAME}/1"
    assert "champion" in registry("show")

    predicted = said("predict", f"models:/{NAME}@champion", str(image), "--json")
    assert predicted and said("predict", str(root / "runs" / "watched"), str(image), "--json")


def iter_images(root: Path):  # type: ignore[no-untyped-def]
    import tarfile

    with tarfile.open(next((few_digits() / "webdataset").glob("val-*.tar"))) as shard:
        for member in shard:
            if member.name.endswith((".png", ".jpg")):
                path = root / f"image{Path(member.name).suffix}"
                path.write_bytes(shard.extractfile(member).read())  # type: ignore[union-attr]
                yield path


COMMANDS = {
    "check": ["check", str(JOB)],
    "run": ["run", "--no-ray", str(JOB)],
    "registry list": ["registry", "list"],
    "predict": ["predict", f"models:/{NAME}@champion"],
    "replay-tracking": ["replay-tracking", "watched"],
}
MISTAKES = {
    "another password": ({"MLFLOW_TRACKING_PASSWORD": "wr0ng/of mine"}, r"password|authenticat|401"),
    "no log-in": (
        {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""},
        r"log-in|authenticat|401",
    ),
    "another authority": ({"MLFLOW_TRACKING_SERVER_CERT_PATH": "OTHER"}, r"certificate verify failed"),
    "no authority": ({"MLFLOW_TRACKING_SERVER_CERT_PATH": ""}, r"certificate verify failed"),
    "no file of an authority": ({"MLFLOW_TRACKING_SERVER_CERT_PATH": "/nowhere.pem"}, r"/nowhere\.pem"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_password_or_authority_is_one_message(
    command: str, mistake: str, as_user: MlflowService, root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Before work is lost: a run doesn't start. What is said names no secret."""
    changes, reason = MISTAKES[mistake]
    monkeypatch.setenv("CONVMLP_ROOT", str(root))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name, value in changes.items():
        if value == "OTHER":
            value = str(private_authority(tmp_path, "another company").certificate)
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    words = list(COMMANDS[command])
    if command in ("check", "run"):
        words += values_of(root, name="never")
    if command == "predict":
        words.append(str(next(iter_images(root))))
    if command == "replay-tracking":  # something to send
        feed = root / "runs/watched/tracking/feed.json"
        before = feed.read_bytes()
        feed.unlink()
    try:
        assert main(words) == 2
    finally:
        if command == "replay-tracking":
            feed.write_bytes(before)
    out, err = capfd.readouterr()
    assert re.search(reason, err), err
    assert len([line for line in err.splitlines() if "MLflow at" in line or "tracking" in line]) == 1, err
    assert "Traceback" not in out + err and "of mine" not in out + err and PASSWORD not in out + err
    assert not (root / "runs" / "never").exists()


def test_a_bucket_that_is_not_there_costs_no_metric(
    s3: str,
    postgres: Postgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Clients upload to S3 themselves. Artifacts wait in the run's folder; once there is the bucket, they are sent."""
    postgres.run("createdb", "direct")
    options = ["--no-serve-artifacts", "--default-artifact-root", "s3://not-there/artifacts"]
    with MlflowService(tmp_path / "server", postgres.uri("direct"), options) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        run = tmp_path / "runs" / "one"
        (run / "plots").mkdir(parents=True)
        (run / "plots" / "curve.txt").write_text("curve")
        with replayed_here():
            tracker = Tracker.open(TrackingSection(experiment="direct"), run_dir=run, run_name="one")
            tracker.log_artifact(run / "plots" / "curve.txt", "plots")
            tracker.log_metrics({"loss": 1.0}, 1)
            assert not tracker.finish("FINISHED", timeout=3)
        assert "not-there" in caplog.text or "bucket" in caplog.text
        run_id = load_feed(run).run_id or ""
        client = open_client(server.uri)
        assert [point.value for point in client.get_metric_history(run_id, "loss")] == [1.0]
        with pytest.raises(TrackingError, match=r"doesn't take the run: .*bucket"):
            replay(run)
        with pytest.raises(TrackingError, match=r"is not registered; its bundle stays in .*bucket"):
            register(run_id, tmp_path)
        boto3.client("s3").create_bucket(Bucket="not-there")
        assert replay(run) == run_id
        assert [one.path for one in client.list_artifacts(run_id, "plots")] == ["plots/curve.txt"]
        assert client.get_run(run_id).info.status == "FINISHED"
        assert register(run_id, tmp_path) == "1"
        found = resolve("models:/direct/1", into=tmp_path / "into")
        assert (found.bundle / WEIGHTS_NAME).is_file()


def register(run_id: str, folder: Path) -> str:
    import convmlp
    from convmlp_platform.models.bundle import BundleSpec

    spec = BundleSpec(
        model="convmlp_tiny", num_classes=3, classes=("cat", "dog", "owl"), image_size=32, mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )  # fmt: skip
    write_bundle(folder / "best", convmlp.create_model("convmlp_tiny", num_classes=3).state_dict(), spec)
    section = TrackingSection(experiment="direct", register_as=RegisterSection(name="direct"))
    image = next(iter_images(folder)).read_bytes()
    return register_bundle(
        section, run_id=run_id, bundle=folder / "best", example_image=image, metrics={"top1": 50.0}, tags={}
    ).version


def test_registry_and_artifacts_come_back_from_a_backup(
    as_user: MlflowService, postgres: Postgres, authority: object, tmp_path: Path, root: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As docs/operations.md says it: pg_dump and a copy of the bucket; pg_restore, another bucket, another server."""
    dump = tmp_path / "mlflow.dump"
    postgres.run("pg_dump", "--format=custom", f"--file={dump}", "mlflow")
    client = boto3.client("s3")
    client.create_bucket(Bucket="restored")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for one in page["Contents"]:
            source = {"Bucket": BUCKET, "Key": one["Key"]}
            client.copy_object(CopySource=source, Bucket="restored", Key=one["Key"])
    postgres.run("createdb", "again")
    postgres.run("pg_restore", "--exit-on-error", "--no-owner", "--dbname=again", str(dump))
    upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", postgres.uri("again")]
    assert subprocess.run(upgrade, capture_output=True).returncode == 0
    options = ["--artifacts-destination", "s3://restored/artifacts"]
    with MlflowService(tmp_path / "server", postgres.uri("again"), options) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        found = resolve(f"models:/{NAME}@champion", into=tmp_path / "into")
        weights = (root / "runs" / "watched" / "best" / WEIGHTS_NAME).read_bytes()
        assert found.version == "1" and (found.bundle / WEIGHTS_NAME).read_bytes() == weights
        assert main(["registry", "history", NAME, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 4


def test_a_database_without_a_server_and_its_password(
    postgres: Postgres,
    as_user: MlflowService,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """MLflow's clients can go to the database themselves."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.uri("mlflow"))
    assert main(["registry", "list", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["name"] == NAME
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres.uri("mlflow", password="wr0ngone"))
    assert main(["registry", "list"]) == 2
    said = "".join(capfd.readouterr())
    assert "password authentication failed" in said and "wr0ngone" not in said and "Traceback" not in said
    assert ADMIN not in said and postgres.password not in said
