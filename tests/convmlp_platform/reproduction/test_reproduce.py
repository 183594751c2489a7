"""`convmlp reproduce`: what is at hand is said before anything starts; the same weights come out, bit by bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from prepared import digits
from registered_runs import RegisteredRuns, registered_runs, sent_here
from safetensors.torch import save_file
from undrawn import without_drawing

from convmlp_platform.cli.main import main
from convmlp_platform.registry.registry import resolve
from convmlp_platform.reproduction.equal_weights import compare_weights
from convmlp_platform.tracking.mlflow.client import open_client


@pytest.fixture(scope="module")
def runs() -> RegisteredRuns:
    return registered_runs()


@pytest.fixture(autouse=True)
def here(runs: RegisteredRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(runs.root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def reproduced(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, what was printed, and the errors."""
    capsys.readouterr()
    with sent_here(), without_drawing():
        code = main(["reproduce", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("name", ["digits", pytest.param("tuned", marks=pytest.mark.slow)])
def test_the_weights_are_equal_bit_by_bit(
    name: str, runs: RegisteredRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, folder = f"models:/{name}/1", runs.root / "reproductions" / f"reproduce-{name}-1"
    code, out, err = reproduced(capsys, f"models:/{name}@champion", "--check-only", "--no-ray")
    assert (code, err) == (0, ""), out + err
    assert "everything is at hand and the same: the weights must be equal" in out
    for what in ("data", "recipe", "code", "packages", "processor", "workers", "registered weights"):
        assert f"  same     {what:<19} " in out, out
    assert not (runs.root / "runs" / f"reproduce-{name}-1").exists(), "nothing starts"
    names = {path.name for path in folder.iterdir()} - {"code.patch"}
    assert names == {
        "job.yaml", "given_job.yaml", "code.json", "environment.json", "requirements.txt", "submission.json",
        "lineage.json", "at_hand.json",
    }  # fmt: skip
    code, out, err = reproduced(capsys, uri, "--no-ray")
    assert code == 0, out + err
    assert f"EQUAL: the weights of reproduce-{name}-1 are those of {uri}, bit by bit: sha256:" in out
    assert json.loads((folder / "verdict.json").read_text())["equal"] is True
    client = open_client(runs.uri)
    versions = client.search_model_versions(f"name='{name}'")
    assert len(versions) == 1, "a reproduction is no candidate"
    found = client.search_runs(
        [client.get_experiment_by_name("digits").experiment_id], f"tags.reproduces = '{uri}'"
    )
    assert [run.info.run_name for run in found] == [f"reproduce-{name}-1"]
    again, out, err = reproduced(capsys, uri, "--no-ray")
    assert again == 0 and "EQUAL" in out, "what is done is compared again"


@pytest.mark.slow
def test_another_recipe_gives_other_weights_and_that_is_said(
    runs: RegisteredRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("models:/digits/1", "--no-ray", "--out", "other", "--set", "seed=6")
    code, out, err = reproduced(capsys, *words)
    assert code == 3, out + err
    assert "DIFFERS  recipe" in out and "NOT EQUAL: the weights of other (sha256:" in out
    assert "the largest difference is" in out and "a possible reason: recipe: its identity is" in out


def test_what_is_missing_is_said_before_anything_starts(
    runs: RegisteredRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (("--dataset", str(digits("webdataset"))), "data: data.digest: the dataset at"),
        (("--set", f"data.path={tmp_path}/none"), "data: data.path: "),
        (("--dataset", str(tmp_path / "none")), "no dataset"),
        (("--set", "optimizer.lr=x"), "optimizer.lr"),
        (("--out", "../elsewhere"), "--out ../elsewhere: can't be a run's name"),
    ):
        code, out, err = reproduced(capsys, "models:/digits/1", "--no-ray", "--out", "missing", *words)
        assert code == 2 and message in err, (words, out, err)
    assert not (runs.root / "runs" / "missing").exists()


def test_the_dataset_may_lie_elsewhere(
    runs: RegisteredRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(runs.data, tmp_path / "moved")
    code, out, _ = reproduced(
        capsys, "models:/digits/1", "--check-only", "--no-ray", "--dataset", str(moved), "--out", "moved"
    )
    assert code == 0 and f"at {moved}, digest sha256:" in out


def test_differences_are_named_before_anything_starts(
    runs: RegisteredRuns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convmlp_platform.reproduction import at_hand, rebuild

    recorded = rebuild.fetch_run_files

    def edited(*arguments: object) -> dict[str, Path]:
        found = recorded(*arguments)  # type: ignore[arg-type]
        code = json.loads(found["code.json"].read_text())
        code["files"]["convmlp/zoo.py"] = "0" * 40
        code["trees"]["convmlp"] = "0" * 40
        found["code.json"].write_text(json.dumps(code))
        environment = json.loads(found["environment.json"].read_text())
        environment["packages"]["torch"] = "1.0"
        environment["cpu"]["model"] = "Abacus"
        found["environment.json"].write_text(json.dumps(environment))
        job = json.loads(found["job.json"].read_text()) | {"callbacks": ["no_such_module:Watcher"]}
        found["job.json"].write_text(json.dumps(job))
        return found

    monkeypatch.setattr(rebuild, "fetch_run_files", edited)
    client = open_client(runs.uri)
    run_id = client.get_model_version("tuned", "1").run_id
    client.set_tag(run_id, "world_size", "2")
    client.set_model_version_tag("tuned", "1", "lineage.changed", '{"world_size": ["1", "2"]}')
    try:
        code, out, _ = reproduced(capsys, "models:/tuned/1", "--check-only", "--no-ray", "--out", "unlike")
    finally:
        client.set_tag(run_id, "world_size", "1")
        client.delete_model_version_tag("tuned", "1", "lineage.changed")
    assert code == 3 and at_hand.DECISIVE[0] == "torch"
    for part in (
        "DIFFERS  code                1 source files differ: convmlp/zoo.py",
        "DIFFERS  packages            torch 1.0 (here ",
        "DIFFERS  processor           it was Abacus",
        "DIFFERS  history             world_size wasn't the same at every start of the run (1, 2)",
        "same     callbacks           left out, as they are code and change no weights: no_such_module:Watcher",
        "DIFFERS  workers             --no-ray trains with one worker, the run had 2",
        "what differs or is unknown may change the weights: they needn't be equal",
    ):
        assert part in out, out


def test_a_name_that_another_run_has_is_refused(
    runs: RegisteredRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs.root / "runs" / "taken").mkdir(parents=True)
    code, _, err = reproduced(capsys, "models:/digits/1", "--check-only", "--no-ray", "--out", "taken")
    assert code == 2 and "--out taken:" in err and "isn't a reproduction of models:/digits/1" in err


def test_a_version_without_a_job_on_record_is_refused(
    runs: RegisteredRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_client(runs.uri)
    run = client.create_run(client.get_experiment_by_name("digits").experiment_id)
    client.create_registered_model("plain")
    place = client.get_model_version_download_uri("digits", "1")
    client.create_model_version("plain", place, run_id=run.info.run_id)
    code, _, err = reproduced(capsys, "models:/plain/1", "--check-only")
    assert code == 2 and "its job isn't on record" in err
    client.create_registered_model("runless")
    client.create_model_version("runless", place)
    code, _, err = reproduced(capsys, "models:/runless/1", "--check-only")
    assert code == 2 and "can't be trained again" in err


def test_an_edited_tag_of_the_weights_is_seen(
    runs: RegisteredRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_client(runs.uri)
    weights = client.get_model_version("digits", "1").tags["weights.sha256"]
    client.set_model_version_tag("digits", "1", "weights.sha256", "0" * 64)
    try:
        code, out, _ = reproduced(capsys, "models:/digits/1", "--check-only", "--no-ray", "--out", "edited")
    finally:
        client.set_model_version_tag("digits", "1", "weights.sha256", weights)
    assert code == 3 and "isn't what was registered" in out


def test_weights_are_compared_by_bits(tmp_path: Path) -> None:
    one = {"a": torch.tensor([1.0, -0.0, float("nan")]), "b": torch.arange(3)}
    save_file(one, tmp_path / "one")
    save_file(one, tmp_path / "two", metadata={"format": "pt"})
    found = compare_weights(tmp_path / "one", tmp_path / "two")
    assert found.equal and found.sha256 != found.other_sha256
    save_file({**one, "a": torch.tensor([1.0, 0.0, float("nan")])}, tmp_path / "zero")
    assert compare_weights(tmp_path / "one", tmp_path / "zero").differing == ["a"]
    save_file({"a": one["a"]}, tmp_path / "less")
    found = compare_weights(tmp_path / "one", tmp_path / "less")
    assert (found.equal, found.differing, found.furthest) == (False, ["b"], None)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_s_job_on_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the demo trains it: two workers on Ray; fewer steps."""
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    repository = Path(__file__).parents[3]
    steps = ("--set", "training.max_steps=40", "--set", "eval.every_epochs=1")
    assert main(["run", str(repository / "jobs/prep_digits.yaml")]) == 0
    assert main(["run", str(repository / "jobs/pretrain_digits.yaml"), *steps]) == 0
    assert resolve("models:/convmlp-digits@champion").version == "1"
    capsys.readouterr()
    assert main(["reproduce", "models:/convmlp-digits@champion"]) == 0
    out = capsys.readouterr().out
    assert "  same     workers             2, each with 1 thread" in out and "EQUAL: the weights of" in out
