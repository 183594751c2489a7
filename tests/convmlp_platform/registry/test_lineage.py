"""`convmlp registry lineage`: the whole chain; and what isn't on record, or was edited, is unknown."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from registered_runs import RegisteredRuns, registered_runs, sent_here

import convmlp
from convmlp_platform.cli.main import main
from convmlp_platform.config.sections.execution import RegisterSection, TrackingSection
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.registry.lineage.read_lineage import read_lineage
from convmlp_platform.registry.registry import register_bundle
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.delivery import logged_model_of
from convmlp_platform.tracking.provenance.code_state import this_code


@pytest.fixture(scope="module")
def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


def make_bundle(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    spec = BundleSpec(
        model="convmlp_tiny",
        num_classes=2,
        classes=("a", "b"),
        image_size=32,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    write_bundle(folder, convmlp.create_model("convmlp_tiny", num_classes=2).state_dict(), spec)
    return folder


@pytest.fixture(scope="module")
def runs() -> RegisteredRuns:
    return registered_runs()


@pytest.fixture(autouse=True)
def here(runs: RegisteredRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(runs.root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["registry", "lineage", *words]) == 0
    return capsys.readouterr().out


def test_the_whole_chain_is_on_record(runs: RegisteredRuns, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_lineage("models:/tuned@champion")
    assert (found.uri, found.aliases, found.unknown) == ("models:/tuned/1", ["candidate", "champion"], [])
    run, code = found.run, this_code()
    assert run is not None and run.unknown == []
    assert (run.name, run.status, run.world_size, run.device) == ("tuned", "FINISHED", 1, "cpu")
    assert run.job_file == str(runs.root / "job.yaml")
    assert run.overrides is not None and "training.max_steps=2" in run.overrides
    assert (run.code.commit, run.code.dirty, run.code.trees) == (code.commit, code.dirty, code.trees)
    data = [(one.name, one.split, one.context, one.rows, one.classes) for one in run.datasets]
    assert data == [("digits", "train", "training", 479, 10), ("digits", "val", "evaluation", 120, 10)]
    assert len({one.digest for one in run.datasets}) == 1 and run.datasets[0].digest.startswith("sha256:")
    assert run.environment["torch"] and run.environment["cpu"] and run.environment["threads"]
    point = found.checkpoint
    assert point is not None and (point.step, point.state) == (2, "committed") and point.model_id
    assert point.metrics is not None and point.metrics["eval/top1"] == pytest.approx(
        float(found.metrics["top1"])
    )
    assert point.location is not None and point.location.endswith("runs/tuned/checkpoints/step-000000002")
    assert [(one["kind"], one["from"], one["to"], one["moved"]) for one in found.decisions] == [
        ("automatic", None, "1", True)
    ]
    parent = found.parent
    assert parent is not None and parent.pinned == "models:/digits/1" and parent.unknown == []
    assert parent.version is not None and parent.version.run is not None
    assert parent.version.weights_sha256 == parent.sha256 and parent.version.run.name == "digits"
    assert parent.version.parent is None and parent.version.unknown == []

    text = shown(capsys, "models:/tuned@champion")
    for part in (
        "models:/tuned/1  @candidate, @champion",
        f"job          {runs.root / 'job.yaml'} --set name=tuned --set model.init_from=models:/digits@champion",
        "digits train (training): 479 samples, 10 classes, sha256:",
        "digits val (evaluation): 120 samples",
        "began from   models:/digits/1  (model convmlp_tiny, run digits",
        "    models:/digits/1  @candidate, @champion",
        "began from   fresh weights",
        "automatic: @champion none -> 1 by somebody: first champion",
    ):
        assert part in text, text
    assert "unknown" not in text, text
    assert json.loads(shown(capsys, "models:/tuned@champion", "--json")) == found.facts()


def test_mlflow_has_inputs_artifacts_and_system_metrics(runs: RegisteredRuns) -> None:
    client = open_client(runs.uri)
    found = read_lineage("models:/tuned/1")
    assert found.run is not None
    run = client.get_run(found.run.run_id)
    inputs = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    assert inputs.keys() == {"digits/train", "digits/val"}
    assert json.loads(inputs["digits/val"].dataset.profile) == {"num_rows": 120, "num_classes": 10}
    parent = logged_model_of(client.get_model_version("digits", "1"))
    assert parent is not None and [one.model_id for one in run.inputs.model_inputs] == [parent]
    point = found.checkpoint
    assert point is not None
    metric = client.get_logged_model(point.model_id).metrics[0]
    assert (metric.dataset_name, metric.dataset_digest) == ("digits/val", inputs["digits/val"].dataset.digest)
    names = {one.path for one in client.list_artifacts(run.info.run_id, "lineage")}
    wanted = {
        "given_job.yaml",
        "submission.json",
        "job.json",
        "code.json",
        "environment.json",
        "requirements.txt",
    }
    assert names - {"lineage/code.patch"} == {f"lineage/{name}" for name in wanted} | {
        "lineage/training_samples.bin"
    }
    assert 0 <= run.data.metrics["system/system_memory_usage_percentage"] <= 100
    assert run.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert len(client.get_metric_history(run.info.run_id, "system/disk_usage_megabytes")) == 1, "10 s apart"
    assert list(json.loads(run.data.tags["system.nodes"])) == ["node_0"]


def test_an_evaluation_is_linked_to_the_version(
    runs: RegisteredRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "evaluate.yaml"
    job.write_text(
        "kind: evaluate\nname: judged\nmodel: {from: models:/digits/1}\n"
        f"data: {{path: {runs.data}, split: val}}\nlaunch: {{use_gpu: false}}\n"
    )
    with sent_here():
        assert main(["run", str(job), "--no-ray", "--set", "evaluate.batch_size=64"]) == 0
    (one,) = read_lineage("models:/digits@champion").evaluations
    assert (one.dataset, one.split, one.name) == ("digits", "val", "judged") and one.metrics["eval/top1"] >= 0
    client = open_client(runs.uri)
    run = client.get_run(one.run_id)
    assert run.data.tags["job.overrides"] == '["evaluate.batch_size=64"]'
    (model_id,) = (each.model_id for each in run.inputs.model_inputs)
    assert model_id == logged_model_of(client.get_model_version("digits", "1"))
    (point,) = (each for each in client.get_logged_model(model_id).metrics if each.key == "eval/top1")
    assert (point.value, point.dataset_name) == (one.metrics["eval/top1"], "digits/val")
    assert "lineage/code.json" in {each.path for each in client.list_artifacts(one.run_id, "lineage")}
    assert "digits val: top1 " in shown(capsys, "models:/digits/1")


def old_version(runs: RegisteredRuns, folder: Path, png: bytes, name: str, **tags: str) -> str:
    """As an older release registered it: with next to no tags, by a run of its own."""
    section = TrackingSection(uri=runs.uri, experiment="old", register_as=RegisterSection(name=name))
    bundle = make_bundle(folder / "best", seed=len(name))
    version = register_bundle(
        section, run_id=None, bundle=bundle, example_image=png, metrics={"top1": 1.0}, tags=tags
    )
    return f"models:/{name}/{version.version}"


def test_what_an_older_release_did_not_record_is_unknown(
    runs: RegisteredRuns, tmp_path: Path, png: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = old_version(runs, tmp_path, png, "aged")
    found = read_lineage(uri)
    assert found.checkpoint is None and found.run is not None and found.run.code.commit is None
    text = shown(capsys, uri)
    for part in (
        "checkpoint   unknown", "job          unknown", "code         commit unknown", "environment  unknown",
        "data         unknown", "checkpoint: the release that registered it didn't say", "datasets: none is on record",
    ):  # fmt: skip
        assert part in text, text
    json.loads(shown(capsys, uri, "--json"))


def test_edited_tags_give_no_traceback(
    runs: RegisteredRuns, tmp_path: Path, png: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = old_version(runs, tmp_path, png, "edited")
    client = open_client(runs.uri)
    run_id = client.get_model_version("edited", "1").run_id
    for name, value in {
        "checkpoint.step": "many", "lineage.changed": "{", "weights": "3", "metric.top1": "99.7%",
    }.items():  # fmt: skip
        client.set_model_version_tag("edited", "1", name, value)
    for name, value in {
        "git.commit": "<script>", "git.dirty": "perhaps", "code.trees": "a b:c ::", "world_size": "-1",
        "job.file": "x", "job.overrides": "[1", "torch.threads": "?", "init.pinned": "models:/edited/1",
        "init.run": "it's \"odd\"", "identity": "o'hara",
    }.items():  # fmt: skip
        client.set_tag(run_id, name, value)
    found = read_lineage(uri)
    assert found.run is not None and found.run.code.commit is None and found.run.world_size is None
    text = shown(capsys, uri)
    assert (
        "checkpoint: its tag was edited" in text and "the tag lineage.changed isn't what was written" in text
    )
    assert "models:/edited/1 would come from itself: a tag was edited" in text
    for pinned in ("models:/", "models:/nobody/1", "models:/edited@none", "runs/x", "\"'", ""):
        client.set_tag(run_id, "init.pinned", pinned)
        client.set_tag(run_id, "init.identity", "a'b")
        assert "unknown" in shown(capsys, uri)
    client.set_tag(run_id, "init.identity", "a'b\"c")
    assert "unknown" in shown(capsys, uri)


def test_a_run_that_was_deleted(runs: RegisteredRuns, tmp_path: Path, png: bytes, capsys: Any) -> None:
    uri = old_version(runs, tmp_path, png, "orphan")
    client = open_client(runs.uri)
    run_id = client.get_model_version("orphan", "1").run_id
    client.delete_run(run_id)
    assert f"run {run_id} isn't there (any more)" in shown(capsys, uri)


def test_an_edited_log_of_decisions_is_said(
    runs: RegisteredRuns, tmp_path: Path, png: bytes, capsys: Any
) -> None:
    uri = old_version(runs, tmp_path, png, "disputed")
    client = open_client(runs.uri)
    client.create_registered_model("disputed.decisions")
    client.create_model_version("disputed.decisions", source=uri, tags={"decision": "{"})
    assert "decisions: models:/disputed.decisions/1: tag decision is not what was written" in shown(
        capsys, uri
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("models:/nobody@champion", "no registered model is named 'nobody'"),
        ("models:/digits@nobody", "no alias or version 'nobody'"),
        ("digits", "must be models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_what_isn_t_there(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["registry", "lineage", words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_was_started_with_other_code_says_so(runs: RegisteredRuns) -> None:
    """Its commit moved between two starts."""
    from convmlp_platform.runs.run_folder import RunFolder
    from convmlp_platform.tracking.journal import Journal, Tags
    from convmlp_platform.training.outputs.record import _changed_facts

    folder = RunFolder(runs.root / "twice", "")
    journal = Journal(folder.path / "tracking" / "journal.jsonl")
    for commit in ("a" * 40, "b" * 40):
        journal.append(Tags(values={"git.commit": commit, "torch.version": "2.15.0"}))
    journal.close()
    assert json.loads(_changed_facts(folder)["lineage.changed"]) == {"git.commit": ["a" * 40, "b" * 40]}
