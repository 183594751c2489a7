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

from convmlp import create_model
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.proof import check_ledger
from convmlp_platform.data.split import open_manifest
from convmlp_platform.errors import CheckpointError, ConfigError
from convmlp_platform.tracking.journal import tag_history
from convmlp_platform.tracking.state import journal_path
from convmlp_platform.training.build_task import build_model
from convmlp_platform.training.init_record import read_record
from convmlp_platform.training.initial_weights import counted_weights, keep_weights, start_line
from convmlp_platform.training.memory import build_on_meta
from convmlp_platform.training.preflight import preflight
from convmlp_platform.training.run import begin, run
from convmlp_platform.training.run_folder import check_owner


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
    assert not (tmp_path / "runs").exists()
    begin(job(tmp_path), digest())
    report = preflight(job(tmp_path))
    assert report.problems == []
    assert any(line.endswith("kept in the run's folder when it began") for line in report.summary)


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
