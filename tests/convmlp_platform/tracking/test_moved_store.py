"""A root that was moved or copied: what is in it is found, and not a byte changes in the place that it came from."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tree_state import state_of
from unsent import replayed_here

import convmlp
from convmlp_platform.cli.main import main
from convmlp_platform.config.sections.execution import RegisterSection, TrackingSection
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import WEIGHTS_NAME, BundleSpec, write_bundle
from convmlp_platform.registry.registry import register_bundle, resolve
from convmlp_platform.runs.run_folder import stored_job
from convmlp_platform.tracking.delivery_state import Target, load_feed, load_target, save_target
from convmlp_platform.tracking.journal import CheckpointCommitted
from convmlp_platform.tracking.mlflow.checkpoint_models import list_models
from convmlp_platform.tracking.mlflow.client import ensure_experiment, open_client
from convmlp_platform.tracking.mlflow.replayer import replay
from convmlp_platform.tracking.mlflow.tracking_uri import check_tracking
from convmlp_platform.tracking.moved_store import BEFORE, address_of, artifact_folder, follow, followed
from convmlp_platform.tracking.tracker import Tracker

SPEC = BundleSpec(
    model="convmlp_tiny",
    num_classes=3,
    classes=("cat", "dog", "owl"),
    image_size=32,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)
HISTORY = {("params", "value")}
"""A run's parameters say what it was told; they are no addresses."""


def section_of(root: Path) -> TrackingSection:
    return TrackingSection(
        uri=f"sqlite:///{root}/mlflow.db",
        experiment="tests",
        register_as=RegisterSection(name="toy", automatic=True),
    )


def bundle_of(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    write_bundle(folder, convmlp.create_model("convmlp_tiny", num_classes=3).state_dict(), SPEC)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, png: bytes) -> Path:
    """A root with a store, a run in it that was sent, and a registered model; tests take copies of it."""
    root = tmp_path_factory.mktemp("made") / "my root, 100% ü"
    run = root / "runs" / "one"
    (run / "plots").mkdir(parents=True)
    (run / "plots" / "curve.txt").write_text("curve")
    section = section_of(root)
    with replayed_here():
        tracker = Tracker.open(section, run_dir=run, run_name="one")
        tracker.log_params({"checkpoint": {"path": str(root / "runs")}})
        tracker.log_artifact(run / "plots" / "curve.txt", "plots")
        place = run / "checkpoints" / "step-000000001"
        tracker.log_checkpoint(CheckpointCommitted(location=str(place), digest="d", step=1))
        assert tracker.finish("FINISHED")
    register_bundle(
        section, run_id=tracker.run_id, bundle=bundle_of(run / "best", 1), example_image=png, metrics={"top1": 90.0},
        tags={"dataset.digest": "d", "checkpoints": str(run / "checkpoints")},
    )  # fmt: skip
    return root


@pytest.fixture
def old(made: Path, tmp_path: Path) -> Path:
    """A copy of it that knows no other place."""
    root = tmp_path / "old 50%"
    shutil.copytree(made, root)
    follow(root / "mlflow.db")
    (root / f"mlflow.db{BEFORE}").unlink()
    with closing(sqlite3.connect(root / "mlflow.db")) as store, store:
        store.execute("UPDATE params SET value = replace(value, ?, ?)", (str(made), str(root)))
    run = root / "runs" / "one"
    here = {"uri": f"sqlite:///{root}/mlflow.db", "folder": str(run)}
    save_target(run, load_target(run).model_copy(update=here))
    return root


@pytest.fixture(autouse=True)
def each_root_is_another_process() -> Iterator[None]:
    """MLflow remembers where a run's artifacts are, for the life of a process."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()
    yield
    utils._artifact_repos_cache.clear()


def content_of(database: Path) -> list[str]:
    with closing(sqlite3.connect(database)) as store:
        return list(store.iterdump())


def mentions(database: Path, root: Path) -> set[tuple[str, str]]:
    """Columns with a value that names the root, as a path or in an address."""
    found = set()
    with closing(sqlite3.connect(database)) as store:
        for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for _, column, *_ in store.execute(f"PRAGMA table_info({table})").fetchall():
                for form in (str(root), root.as_uri()):
                    query = f'SELECT count(*) FROM {table} WHERE instr(CAST("{column}" AS TEXT), ?)'
                    if store.execute(query, (form,)).fetchone()[0]:
                        found.add((table, column))
    return found


@pytest.mark.parametrize(
    "is_copy", [pytest.param(False, id="moved", marks=pytest.mark.slow), pytest.param(True, id="copied")]
)
def test_all_is_found_and_written_in_the_new_place(
    old: Path, tmp_path: Path, is_copy: bool, png: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    new = tmp_path / "elsewhere" / "new"
    content = content_of(old / "mlflow.db")
    new.parent.mkdir()
    shutil.copytree(old, new) if is_copy else old.rename(new)
    before = state_of(old) if is_copy else None
    section = section_of(new)

    found = resolve("models:/toy@champion", section=section)
    assert found.bundle.is_relative_to(new)
    assert (found.bundle / WEIGHTS_NAME).read_bytes() == (new / "runs/one/best" / WEIGHTS_NAME).read_bytes()
    verb = "copied" if is_copy else "moved"
    assert (
        f"store {new}/mlflow.db was {verb} from {old}: " in caplog.text and caplog.text.count(str(old)) == 1
    )
    assert content_of(new / f"mlflow.db{BEFORE}") == content
    assert mentions(new / "mlflow.db", old) == HISTORY

    run = new / "runs" / "one"
    (model,) = list_models(run, "eval/top1")
    assert model.location == str(run / "checkpoints" / "step-000000001")
    run_id = load_feed(run).run_id
    with replayed_here():
        tracker = Tracker.open(section, run_dir=run, run_name="one")
        (run / "plots" / "more.txt").write_text("more")
        tracker.log_artifact(run / "plots" / "more.txt", "plots")
        tracker.log_metrics({"loss": 1.0}, 2)
        assert tracker.finish("FINISHED") and tracker.run_id == run_id
    version = register_bundle(
        section, run_id=run_id, bundle=bundle_of(run / "best2", 2), example_image=png, metrics={"top1": 91.0},
        tags={"dataset.digest": "d"},
    )  # fmt: skip
    assert (version.version, version.alias) == ("2", "champion")
    client = open_client(section.uri or "")
    assert sorted(one.path for one in client.list_artifacts(str(run_id), "plots")) == [
        "plots/curve.txt", "plots/more.txt",
    ]  # fmt: skip
    assert list((new / "mlartifacts").rglob("more.txt"))
    assert len(list((new / "mlartifacts").rglob("bundle.json"))) == 2
    assert old.exists() == is_copy and (before is None or state_of(old) == before)


def test_a_store_at_home_is_left_alone(old: Path) -> None:
    before = state_of(old)
    follow(old / "mlflow.db")
    assert state_of(old) == before


def test_a_folder_of_two_names_is_no_move(old: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(old)
    content = (old / "mlflow.db").read_bytes()
    client = open_client(f"sqlite:///{link}/mlflow.db")
    assert (old / "mlflow.db").read_bytes() == content
    # What is made by the other name gets the first: it stays valid without the link.
    location = client.get_experiment(ensure_experiment(client, f"sqlite:///{link}/mlflow.db", "by link"))
    assert location.artifact_location == artifact_folder(old / "mlflow.db").as_uri()
    assert address_of(link / "runs/one") == f"sqlite:///{old}/mlflow.db"
    link.unlink()
    link.symlink_to(shutil.copytree(old, tmp_path / "copy"))  # the same name, another place
    follow(link / "mlflow.db")
    assert mentions(tmp_path / "copy" / "mlflow.db", old) == HISTORY
    assert mentions(old / "mlflow.db", old) > {("runs", "artifact_uri"), ("experiments", "artifact_location")}


def test_artifacts_that_were_left_behind_are_a_refusal(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(old / "mlflow.db", new)
    before, content = state_of(old), (new / "mlflow.db").read_bytes()
    monkeypatch.setenv("CONVMLP_ROOT", str(new))
    assert main(["registry", "list"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{new}/mlflow.db was made in {old}, and came without 2 folders" in said
    assert f"cp -rn '{old}/mlartifacts' '{new}'" in said
    (problem,) = check_tracking(TrackingSection())
    assert problem.startswith("tracking.uri (=") and "came without 2 folders of its artifacts" in problem
    assert (new / "mlflow.db").read_bytes() == content and not (new / "mlartifacts").exists()
    assert state_of(old) == before
    subprocess.run(["cp", "-rn", old / "mlartifacts", new], check=True)  # as the message says
    assert check_tracking(TrackingSection()) == [] and main(["registry", "list"]) == 0
    assert state_of(old) == before


def test_a_copy_that_cannot_be_written_is_a_refusal(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere: here `os.access` says what it says on a read-only mount."""
    new = shutil.copytree(old, tmp_path / "new")
    before = state_of(new)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    with pytest.raises(
        TrackingError, match=f"{new}/mlflow.db was made in {old}, .* can't be written here: make"
    ):
        resolve("models:/toy@champion", section=section_of(new))
    assert state_of(new) == before
    before = state_of(old)
    assert resolve("models:/toy@champion", section=section_of(old)).version == "1"  # one at home can be read
    assert state_of(old) == before


def test_two_that_open_it_at_once_rewrite_it_once(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    old.rename(new)
    code = (
        "import logging, sys; from pathlib import Path; logging.basicConfig();"
        "from convmlp_platform.tracking.moved_store import follow;"
        "print('ready', flush=True); sys.stdin.readline(); follow(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(new / "mlflow.db")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    several = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for one in several:
        assert one.stdout.readline() == "ready\n"
    for one in several:
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate(timeout=60)[1] for one in several]
    assert [one.returncode for one in several] == [0] * 3
    assert "".join(said).count("was moved from") == 1
    assert mentions(new / "mlflow.db", old) == HISTORY


def test_a_store_whose_writer_was_killed_amid_a_transaction(old: Path, tmp_path: Path) -> None:
    """Half of it is in the file, and the way back beside it."""
    new = tmp_path / "new"
    with closing(sqlite3.connect(old / "mlflow.db", isolation_level=None)) as store:
        store.execute("PRAGMA cache_size = 1")
        store.execute("BEGIN")
        store.execute("UPDATE params SET value = zeroblob(100000)")
        store.execute("UPDATE tags SET value = hex(randomblob(50000))")
        shutil.copytree(old, new)
        assert (new / "mlflow.db-journal").stat().st_size > 0
        store.execute("ROLLBACK")
    assert check_tracking(section_of(new)) == []
    follow(new / "mlflow.db")
    assert not (new / "mlflow.db-journal").exists()
    assert mentions(new / "mlflow.db", old) == HISTORY


@pytest.mark.parametrize(("before", "after"), [("a", "a/b"), ("a/b", "a")])
def test_a_root_that_moves_into_itself_or_out_of_itself(
    old: Path, tmp_path: Path, before: str, after: str
) -> None:
    first, second = tmp_path / before, tmp_path / after
    first.parent.mkdir(exist_ok=True)
    old.rename(first)
    follow(first / "mlflow.db")
    parts = ("mlflow.db", "mlartifacts", "runs")
    second.mkdir(exist_ok=True)
    for name in parts:
        (first / name).rename(second / name)
    follow(second / "mlflow.db")
    found = resolve("models:/toy@champion", section=section_of(second)).bundle
    assert found.is_relative_to(second / "mlartifacts")


def forget(database: Path) -> None:
    """Make it a store of an earlier release."""
    with closing(sqlite3.connect(database)) as store:
        store.execute("DROP TABLE convmlp_store")


@pytest.mark.parametrize("is_copy", [False, True], ids=["moved", "copied"])
def test_a_store_of_an_earlier_release_follows_too(old: Path, tmp_path: Path, is_copy: bool) -> None:
    forget(old / "mlflow.db")
    for name in ("target", "feed"):  # nor do its runs say in which folder they were
        path = old / "runs/one/tracking" / f"{name}.json"
        known = json.loads(path.read_text())
        known.pop("folder", None)
        if name == "feed":
            known["address"] = f"sqlite:///{old}/mlflow.db tests"
        else:
            known["uri"] = f"sqlite:///{old}/mlflow.db"
        path.write_text(json.dumps(known))
    new = tmp_path / "new"
    shutil.copytree(old, new) if is_copy else old.rename(new)
    before = state_of(old) if is_copy else None
    assert resolve("models:/toy@champion", section=section_of(new)).bundle.is_relative_to(new)
    assert old.exists() == is_copy and (before is None or state_of(old) == before)


def test_artifacts_that_somebody_wants_elsewhere_stay_there(old: Path, tmp_path: Path) -> None:
    shared, bucket = tmp_path / "nas" / "mlartifacts", "s3://bucket/mlartifacts"
    shared.mkdir(parents=True)
    client = open_client(f"sqlite:///{old}/mlflow.db")
    for name, location in (("nas", shared.as_uri()), ("s3", bucket), ("server", "mlflow-artifacts:/9")):
        client.create_experiment(name, artifact_location=location)
    for is_known in (True, False):
        new = shutil.copytree(old, tmp_path / f"new {is_known}")
        if not is_known:
            forget(new / "mlflow.db")
        follow(new / "mlflow.db")
        with closing(sqlite3.connect(new / "mlflow.db")) as store:
            found = dict(store.execute("SELECT name, artifact_location FROM experiments").fetchall())
        assert found["nas"] == shared.as_uri() and found["s3"] == bucket
        assert found["server"] == "mlflow-artifacts:/9"
        assert found["tests"] == (new / "mlartifacts").as_uri()


def test_an_unsent_journal_goes_to_the_store_beside_it(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the files as they are in the copy, and not to a store that a copied run has none of."""
    monkeypatch.delenv("CONVMLP_ROOT", raising=False)
    (old / "runs/one/tracking/feed.json").unlink()
    new = shutil.copytree(old, tmp_path / "new")
    (new / "runs/one/plots/curve.txt").write_text("as it is in the copy")
    alone = shutil.copytree(old / "runs/one", tmp_path / "backup" / "one")
    before = state_of(old)
    run_id = replay(new / "runs" / "one")
    assert [path.read_text() for path in (new / "mlartifacts" / run_id).rglob("curve.txt")] == [
        "as it is in the copy"
    ]
    with pytest.raises(TrackingError, match=f"{alone} came from {old}/runs/one without its MLflow store"):
        replay(alone)
    assert state_of(old) == before and not list(alone.parent.parent.glob("mlflow.db*"))


def test_the_store_of_a_run(tmp_path: Path) -> None:
    """`home`: where its target was written; `there`: the run's folder now; files that are there; what it is."""
    a, b = tmp_path / "a", tmp_path / "b"
    cases = [
        (a / "runs/x", a / "runs/x", [a], a),
        (a / "runs/x", a / "runs/x", [], a),
        (a / "runs/x", b / "runs/x", [b], b),
        (a / "runs/x", b / "runs/x", [a, b], b),
        (a / "runs/x", b / "runs/x", [], b),
        (a / "runs/x", b / "runs/x", [a], None),
        (a / "runs/x", a / "archive/2026/x", [a], a),
        (b / "runs/x", b / "runs/x", [a], a),  # a store of its own place
        (b / "runs/x", tmp_path / "c/runs/x", [a], a),
    ]
    for home, there, stores, expected in cases:
        for root in (a, b):
            root.mkdir(exist_ok=True)
            (root / "mlflow.db").unlink(missing_ok=True)
        for root in stores:
            (root / "mlflow.db").touch()
        there.mkdir(parents=True, exist_ok=True)
        target = Target(uri=f"sqlite:///{a}/mlflow.db", experiment="e", run_name="r", folder=str(home))
        if expected is None:
            with pytest.raises(TrackingError, match=f"none at {b}/mlflow.db, and {a}/mlflow.db belongs"):
                address_of(there, target)
        else:
            assert address_of(there, target) == f"sqlite:///{expected}/mlflow.db", (home, there, stores)
    server = Target(uri="http://host", experiment="e", run_name="r", folder=str(a / "runs/x"))
    assert address_of(b / "runs/x", server) == "http://host"


def test_what_was_written_down_for_a_run_is_found_in_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    assert followed("plots/a.png", run) == run / "plots/a.png"
    assert followed("/old/runs/x/plots/a.png", run) == run / "plots/a.png"
    assert followed(str(run / "x" / "a.png"), run) == run / "x" / "a.png"
    assert followed("/old/x/runs/x/a.png", run) == run / "a.png"
    assert followed("/elsewhere/a.png", run) == Path("/elsewhere/a.png")


def test_a_recorded_job_names_the_data_beside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for root in (old, new):
        (root / "runs/x").mkdir(parents=True)
        (root / "data/digits").mkdir(parents=True)
    (old / "data/more").mkdir()
    job = {
        "name": "x",
        "data": {"path": str(old / "data/digits")},
        "checkpoint": {"path": str(old / "runs"), "store": "s3://bucket/runs"},
        "model": {"init_from": str(tmp_path / "weights.pth")},
    }
    for root in (old, new):
        (root / "runs/x/job.json").write_text(json.dumps(job))
    assert stored_job(old / "runs/x") == job
    assert stored_job(new / "runs/x") == job | {
        "data": {"path": str(new / "data/digits")},
        "checkpoint": {"path": str(new / "runs"), "store": "s3://bucket/runs"},
    }
    assert caplog.text == ""
    job["data"] = {"path": str(old / "data/more")}
    (new / "runs/x/job.json").write_text(json.dumps(job))
    assert stored_job(new / "runs/x")["data"]["path"] == str(old / "data/more")
    assert f"came from {old} without data.path: it is read where it was ({old}/data/more)" in caplog.text
