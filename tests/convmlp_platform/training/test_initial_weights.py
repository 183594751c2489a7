"""A run keeps the weights it starts from: alias, file and registry may change or go, the run doesn't."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import digits
from safetensors.torch import save_file
from saved import save_now

from convmlp import create_model
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import CheckpointError, ConfigError
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.runs.find_model import find_model
from convmlp_platform.runs.init_record import read_record
from convmlp_platform.runs.run_folder import check_owner
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import tag_history
from convmlp_platform.training.build.build_run import begin
from convmlp_platform.training.build.build_task import build_model
from convmlp_platform.training.build.initial_weights import (
    counted_weights,
    keep_weights,
    start_line,
    starting_job,
)
from convmlp_platform.training.preflight.memory import build_on_meta
from convmlp_platform.training.preflight.preflight import preflight
from convmlp_platform.training.run import run


@cache
def digest() -> str:
    return open_manifest(str(digits())).digest


def job(root: Path, source: str | None = "source.safetensors", **sections: Any) -> TrainJob:
    values: dict[str, Any] = {
        "kind": "train",
        "name": "transfer",
        "model": {"name": "convmlp_tiny", "init_from": None if source is None else str(root / source)},
        "data": {"path": str(digits()), "image_size": 32, "num_workers": 0},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 1, "global_batch_size": 16, "micro_batch_size": 8, "log_every_steps": 1},
        "eval": {"batch_size": 128},
        "checkpoint": {"path": str(root / "runs")},
        "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
        "launch": {"use_gpu": False},
    }
    return TrainJob.model_validate(values | {name: values[name] | given for name, given in sections.items()})


def write(file: Path, seed: int, num_classes: int = 7, name: str = "convmlp_tiny") -> Path:
    torch.manual_seed(seed)
    save_file(create_model(name, num_classes).state_dict(), file)
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source.safetensors", seed=1)


def first_weight(job: TrainJob) -> torch.Tensor:
    """Of the model that a start of the run begins with."""
    _, starting = begin(job, digest())
    return next(iter(build_model(starting, 10).parameters())).detach()


def test_what_was_pinned_holds_when_the_file_changes_or_goes(tmp_path: Path, source: Path) -> None:
    values = job(tmp_path)
    begun = first_weight(values)
    write(source, seed=2)
    assert torch.equal(first_weight(values), begun)
    source.unlink()
    assert torch.equal(first_weight(values), begun)
    assert preflight(values).problems == []
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"model\.init_from: .*source\.safetensors: there is no such file"):
        begin(values, digest())


def test_another_source_is_another_recipe_unless_its_weights_are_the_same(
    tmp_path: Path, source: Path
) -> None:
    begin(job(tmp_path), digest())
    shutil.copy(source, tmp_path / "copy.safetensors")
    begin(job(tmp_path, "copy.safetensors"), digest())
    write(tmp_path / "other.safetensors", seed=2)
    with pytest.raises(
        ConfigError, match=r"model\.init_from: .*source\.safetensors \(sha256:\w+…\) → .*other\.safe"
    ):
        begin(job(tmp_path, "other.safetensors"), digest())
    with pytest.raises(ConfigError, match=r"model\.init_from: sha256:\w+ → null"):
        begin(job(tmp_path, None), digest())


def test_a_run_begun_fresh_is_not_continued_from_weights(tmp_path: Path, source: Path) -> None:
    begin(job(tmp_path, None), digest())
    with pytest.raises(ConfigError, match=r"model\.init_from: null → source\.safetensors"):
        begin(job(tmp_path), digest())
    assert read_record(tmp_path / "runs" / "transfer") is None


def test_the_run_may_move_with_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    write(tmp_path / "here" / "source.safetensors", seed=1)
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path / "here"))
    begin(job(tmp_path / "here"), digest())
    (tmp_path / "here" / "runs").rename(tmp_path / "there" / "runs")
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path / "there"))
    begin(job(tmp_path / "there"), digest())


def test_a_run_of_a_release_that_counted_names_goes_on(tmp_path: Path, source: Path) -> None:
    """Its run.json has the file's name and lacks what came later; its identity stays what its ledgers say."""
    folder, _ = begin(job(tmp_path), digest())
    shutil.rmtree(folder.path / "init")
    file = folder.path / "run.json"
    fields = json.loads(file.read_text())["identity_fields"]
    fields = {name: value for name, value in fields.items() if not name.startswith("augment.")}
    file.write_text(json.dumps({"identity_fields": fields | {"model.init_from": "source.safetensors"}}))
    again, starting = begin(job(tmp_path), digest())
    assert again.identity == begin(job(tmp_path), digest())[0].identity != folder.identity
    assert starting.model.init_from == str(source)
    with pytest.raises(ConfigError, match=r"model\.init_from: source\.safetensors → other\.safetensors"):
        check_owner(job(tmp_path, "other.safetensors"), digest())


def test_a_start_that_never_began_pins_anew_where_the_job_names_another_source(
    tmp_path: Path, source: Path
) -> None:
    keep_weights(job(tmp_path))
    write(tmp_path / "other.safetensors", seed=2)
    record = keep_weights(job(tmp_path, "other.safetensors"))
    assert record is not None and record.pinned.endswith("other.safetensors")
    assert counted_weights(job(tmp_path, "other.safetensors")) == record.weights
    assert [path.name for path in (tmp_path / "runs" / "transfer").iterdir()] == ["init"]


def test_a_damaged_copy_is_refused(tmp_path: Path, source: Path) -> None:
    folder, starting = begin(job(tmp_path), digest())
    copy = folder.path / "init" / "model.safetensors"
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ConfigError, match="not what was written there"):
        build_model(starting, 10)
    (folder.path / "init" / "init.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"init\.json can't be read"):
        begin(job(tmp_path), digest())


def test_what_a_start_takes_is_told(tmp_path: Path, source: Path) -> None:
    report = preflight(job(tmp_path))
    assert report.problems == []
    (line,) = [line for line in report.summary if line.startswith("start")]
    assert line.endswith("source.safetensors: 89 of 91 tensors, head fresh")
    write(source, seed=1, num_classes=10)
    (line,) = [line for line in preflight(job(tmp_path)).summary if line.startswith("start")]
    assert (
        "all 91 tensors; its head is taken to be for the dataset's 10 classes, as nothing there says" in line
    )
    assert not (tmp_path / "runs").exists()
    begin(job(tmp_path), digest())
    report = preflight(job(tmp_path))
    assert report.problems == []
    assert any(line.endswith("kept in the run's folder when it began") for line in report.summary)


DIGITS = tuple("0123456789")


def bundle(folder: Path, classes: tuple[str, ...], dataset_digest: str | None = None) -> Path:
    torch.manual_seed(1)
    half = (0.5, 0.5, 0.5)
    spec = BundleSpec(
        model="convmlp_tiny", num_classes=10, classes=classes, image_size=32, mean=half, std=half,
        provenance={} if dataset_digest is None else {"dataset_digest": dataset_digest},
    )  # fmt: skip
    write_bundle(folder / "model", create_model("convmlp_tiny", 10).state_dict(), spec)
    return folder / "model"


@pytest.mark.parametrize(
    ("classes", "head", "kept", "said"),
    [
        (DIGITS, "auto", True, None),
        (
            ("1", "0", *DIGITS[2:]),
            "auto",
            False,
            "as its class 0 is '1', the dataset's is '0' (and 1 more differ)",
        ),
        (("1", "0", *DIGITS[2:]), "keep", True, None),
        (DIGITS, "fresh", False, None),
    ],
)
def test_a_head_for_other_classes_is_made_anew(
    classes: tuple[str, ...], head: str, kept: bool, said: str | None, tmp_path: Path
) -> None:
    """Of a bundle, and, because the run's copy of it knows its classes, of the run's own start."""
    source = bundle(tmp_path, classes)
    values = job(tmp_path, "model", model={"init_head": head})
    (line,) = [line for line in preflight(values).summary if line.startswith("start")]
    assert ("head fresh" in line) != kept
    assert line.endswith("tensors" if kept else "fresh") or (said is not None and said in line), line
    manifest = open_manifest(str(digits()))
    _, starting = begin(values, digest())
    shutil.rmtree(source)
    model = build_model(starting, 10, manifest)
    torch.manual_seed(1)
    theirs = create_model("convmlp_tiny", 10)
    assert torch.equal(model.head.weight, theirs.head.weight) == kept  # type: ignore[union-attr]
    assert torch.equal(model.norm.weight, theirs.norm.weight)  # type: ignore[union-attr]
    again = start_line(starting, model, manifest)
    assert again is not None and ("head fresh" in again) != kept


def test_classes_of_a_checkpoint_are_those_on_record(tmp_path: Path) -> None:
    """In the checkpoint itself; of an older one, in the best model beside it."""
    torch.manual_seed(1)
    tensors = {"model": create_model("convmlp_tiny", 10).state_dict()}
    run_folder = tmp_path / "other"
    save_now(
        Checkpointer(run_folder / "checkpoints"), Checkpoint(5, tensors, {"classes": list("abcdefghij")})
    )
    save_now(Checkpointer(run_folder / "checkpoints"), Checkpoint(10, tensors, {}))
    values = job(tmp_path, "other/checkpoints/step-000000005")
    model = build_on_meta(values, 10)
    manifest = open_manifest(str(digits()))
    line = start_line(values, model, manifest)
    assert line is not None and "as its class 0 is 'a', the dataset's is '0' (and 9 more differ)" in line
    values = job(tmp_path, "other/checkpoints/step-000000010")
    line = start_line(values, model, manifest)
    assert line is not None and line.endswith("(model.init_head: fresh makes it anew)")
    (run_folder / "job.json").write_text(values.model_dump_json())
    bundle(run_folder, tuple("klmnopqrst")).rename(run_folder / "best")
    line = start_line(values, model, manifest)
    assert line is not None and "as its class 0 is 'k'" in line


def test_of_two_sets_of_weights_the_job_chooses(tmp_path: Path) -> None:
    raw = create_model("convmlp_tiny", 10).state_dict()
    ema = {name: value + 1 if value.is_floating_point() else value for name, value in raw.items()}
    torch.save({"state_dict": raw, "state_dict_ema": ema}, tmp_path / "timm.pth")
    said = {
        "auto": "the moving average, 'state_dict_ema', is taken, not 'state_dict' (model.init_weights: raw takes",
        "raw": "'state_dict' is taken, not the moving average, 'state_dict_ema' (model.init_weights: ema takes",
    }
    for choice, state in (
        ("auto", ema),
        ("raw", raw),
    ):  # the second start takes its own copy, as none has begun
        values = job(tmp_path, "timm.pth", model={"init_weights": choice})
        (line,) = [line for line in preflight(values).summary if line.startswith("start")]
        assert said[choice] in line
        keep_weights(values)
        again = start_line(starting_job(values), build_on_meta(values, 10))
        assert again is not None and said[choice] in again  # as the run itself says it, of its copy
        assert torch.equal(build_model(starting_job(values), 10).norm.weight, state["norm.weight"])  # type: ignore[union-attr]
    begin(values, digest())
    with pytest.raises(ConfigError, match=r"model\.init_weights: raw → auto"):
        begin(job(tmp_path, "timm.pth"), digest())
    save_now(Checkpointer(tmp_path / "both"), Checkpoint(5, {"model": raw, "ema": ema}, {}))
    save_now(Checkpointer(tmp_path / "one"), Checkpoint(5, {"model": raw}, {}))
    place = str(tmp_path / "both" / "step-000000005")
    for choice, state in (("auto", ema), ("raw", raw), ("ema", ema)):
        found = find_model(place, choice=choice)  # type: ignore[arg-type]
        assert torch.equal(found.state_dict()["norm.weight"], state["norm.weight"])
    with pytest.raises(ConfigError, match="holds no moving average"):
        find_model(str(tmp_path / "one" / "step-000000005"), choice="ema").state_dict()
    source = bundle(tmp_path, DIGITS)
    with pytest.raises(ConfigError, match="a finished model has only one set of weights"):
        find_model(str(source), choice="raw")


@pytest.mark.parametrize(
    ("name", "said"),
    [("resnet10t", "does not fit ConvMLP"), ("absent", "there is no such file or folder")],
)
def test_weights_that_cannot_be_had_are_a_problem_before_any_worker_starts(
    tmp_path: Path, name: str, said: str
) -> None:
    if name != "absent":
        write(tmp_path / f"{name}.safetensors", 1, name=name)
    problems = preflight(job(tmp_path, f"{name}.safetensors")).problems
    assert any(line.startswith("model.init_from: ") and said in line for line in problems)


def test_a_detector_starts_from_a_classifier_or_from_a_whole_detector(tmp_path: Path, source: Path) -> None:
    dense = {"task": {"name": "retinanet", "pyramid_channels": 16}}
    values = job(tmp_path).model_copy(update={"task": job(tmp_path).task.model_copy(update=dense["task"])})
    line = start_line(values, build_on_meta(values, 3))
    assert line is not None and line.endswith("tensors of the backbone, the rest fresh")
    detector = build_model(values, 3)
    classifier = create_model("convmlp_tiny", 7, pretrained_path=source)
    own = detector.backbone.body.state_dict()  # type: ignore[union-attr]
    for key, value in own.items():
        assert torch.equal(value, classifier.state_dict()[key.removeprefix("model.")])
    save_file(detector.state_dict(), tmp_path / "detector.safetensors")
    again = values.model_copy(
        update={
            "model": values.model.model_copy(update={"init_from": str(tmp_path / "detector.safetensors")})
        }
    )
    whole = build_model(again, 3).state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in detector.state_dict().items())
    line = start_line(again, build_on_meta(again, 5))
    assert line is not None and line.endswith("tensors, head fresh")


@pytest.mark.slow
def test_a_run_says_what_it_starts_from_and_goes_on_without_it(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = job(tmp_path, training={"max_steps": 2})
    run(values)
    assert "model: weights of " in capsys.readouterr().out
    source.unlink()
    result = run(job(tmp_path, training={"max_steps": 4}))
    assert result.steps == 4 and not result.already_complete
    assert "model: weights of " not in capsys.readouterr().out
    folder = tmp_path / "runs" / "transfer"
    assert "init.weights_sha256" in str(tag_history(journal_path(folder)))
    assert "init.weights_sha256" in (folder / "best" / "bundle.json").read_text()
    assert check_ledger(folder).ok
