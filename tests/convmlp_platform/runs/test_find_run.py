"""One look-up finds the run that a user means, for every command; what isn't there is refused by all in one way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from saved import save_now

from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer
from convmlp_platform.cli.main import main
from convmlp_platform.config.load import parse_job
from convmlp_platform.errors import ConfigError
from convmlp_platform.evaluation.build_subject import found_model
from convmlp_platform.runs.find_run import find_run, find_run_or_url, locate

JOB: dict[str, Any] = {
    "kind": "train",
    "name": "story",
    "model": {"name": "convmlp_tiny"},
    "data": {"path": "nowhere", "image_size": 32},
    "optimizer": {"lr": 1e-3},
    "training": {"epochs": 1, "global_batch_size": 4, "micro_batch_size": 4},
}


def a_run(folder: Path) -> Path:
    """As far as the look-up sees it: its records, and a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"identity_fields": {}}))
    (folder / "job.json").write_text(parse_job(JOB, "test").model_dump_json())
    weights = {"model": {"head.weight": torch.zeros(3, 2)}}
    save_now(Checkpointer(folder / "checkpoints"), Checkpoint(5, weights, {"step": 5}))
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CONVMLP_ROOT with a run and a sweep of one trial; the user is elsewhere, with a folder of the run's name."""
    a_run(tmp_path / "root" / "runs" / "story")
    a_run(tmp_path / "root" / "runs" / "sizes" / "small")
    (tmp_path / "root" / "runs" / "sizes" / "sweep.json").write_text('{"trials": ["small"]}')
    (tmp_path / "here" / "story").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "here" / "some.png")
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path / "root"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "root"


class Found(ConfigError):
    """Raised where a command begins its work on the folder that it has found."""


def at_work(folder: object, *_: object, **__: object) -> None:
    raise Found(f"found {folder}")


def evaluate(name: str) -> int:
    """As a job that names the model so: `convmlp run` looks it up by `found_model`."""
    values = {"kind": "evaluate", "name": "it", "model": {"from": name}, "data": {"path": "d"}}
    job = parse_job(values | {"output": {"path": "e"}}, "test").resolved()
    try:
        print("found", Path(str(found_model(job).location)).parents[1])  # type: ignore[arg-type]
    except ConfigError as error:
        print(error)
        return 2
    return 0


COMMANDS: dict[str, tuple[Callable[[str], int], str | None]] = {
    "goodput": (lambda name: main(["goodput", name]), "convmlp_platform.goodput.account.account_of"),
    "ledger": (lambda name: main(["data", "ledger", name]), "convmlp_platform.ledger.proof.check_ledger"),
    "checkpoints list": (
        lambda name: main(["checkpoints", "list", name]),
        "convmlp_platform.checkpoints.inventory.list_checkpoints",
    ),
    "checkpoints verify": (
        lambda name: main(["checkpoints", "verify", name]),
        "convmlp_platform.checkpoints.inventory.verify_checkpoints",
    ),
    "checkpoints export": (
        lambda name: main(["checkpoints", "export", name, "out.safetensors"]),
        "convmlp_platform.checkpoints.inventory.export_checkpoint",
    ),
    "replay": (
        lambda name: main(["replay", "--run", name, "--step", "3"]),
        "convmlp_platform.replay.replay_step.replay",
    ),
    "replay-tracking": (
        lambda name: main(["replay-tracking", name]),
        "convmlp_platform.tracking.mlflow.replayer.replay",
    ),
    "compare": (
        lambda name: main(["compare", name]),
        "convmlp_platform.evaluation.compare.find_compared.compared_run",
    ),
    "predict": (lambda name: main(["predict", name, "some.png"]), "convmlp_platform.runs.find_model._run"),
    "evaluate": (evaluate, None),
}
"""For each command: how it is called with a run's name, and what begins its work on the run's folder."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("form", ["NAME", "runs/NAME", "path", "file://", "SWEEP/TRIAL", "runs/SWEEP/TRIAL"])
def test_every_command_finds_a_run_by_each_of_its_names(
    command: str, form: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "runs" / ("sizes/small" if "TRIAL" in form else "story")
    name = {
        "NAME": "story",
        "runs/NAME": "runs/story",
        "path": str(folder),
        "file://": f"file://{folder}",
        "SWEEP/TRIAL": "sizes/small",
        "runs/SWEEP/TRIAL": "runs/sizes/small",
    }[form]
    call, work = COMMANDS[command]
    if work is not None:
        # `_run` gets the text, then the folder.
        spy = (lambda _text, run: at_work(run)) if work.endswith("_run") and "model" in work else at_work
        monkeypatch.setattr(work, spy)
    call(name)
    printed = capsys.readouterr()
    assert f"found {folder}" in printed.out + printed.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "meant"),
    [("stroy", "runs/story"), ("runs/stroy", "runs/story"), ("small", "runs/sizes/small"), ("xyz", None)],
)
def test_every_command_refuses_what_is_not_there_with_the_places_and_the_nearest_name(
    command: str, name: str, meant: str | None, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMANDS[command][0](name) == 2
    printed = capsys.readouterr()
    (line,) = (printed.out + printed.err).splitlines()
    if command != "evaluate":  # a job's paths are absolute
        assert str(Path.cwd() / name) in line
        assert (f"did you mean {meant}?" in line) if meant else "did you mean" not in line
    elif meant:
        assert f"did you mean {root / meant}?" in line
    assert str(root / "runs" / Path(name).name) in line
    assert f"{root / 'runs'} holds sizes, story" in line
    assert "recorded nothing" not in line and "no record" not in line


def test_checkpoints_are_looked_for_at_urls_and_nothing_else_is(root: Path) -> None:
    assert find_run_or_url("s3://bucket/runs/story") == "s3://bucket/runs/story"
    with pytest.raises(ConfigError, match=r"^s3://bucket/x: of what is remote only checkpoints"):
        find_run("s3://user:secret@bucket/x?token=1")


def test_a_checkpoint_of_a_run_is_found_below_the_root_too(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = "runs/story/checkpoints/step-000000005"
    assert main(["checkpoints", "export", one, "out.safetensors"]) == 0
    assert f"of {root / one}" in capsys.readouterr().out
    assert main(["checkpoints", "list", "runs/story/checkpoints/step-000000007"]) == 2
    assert "did you mean runs/story/checkpoints/step-000000005?" in capsys.readouterr().err


def test_the_current_folder_comes_before_the_root(root: Path) -> None:
    assert find_run("story") == root / "runs" / "story"  # the folder of that name here holds nothing of ours
    mine = a_run(Path.cwd() / "runs" / "story")
    assert find_run("runs/story") == mine
    (Path.cwd() / "story" / "events.jsonl").touch()
    assert find_run("story") == Path.cwd() / "story"


def test_names_that_no_file_system_takes_are_not_there(root: Path) -> None:
    for name in ("x" * 5000, "a\0b", "", "~nobody-of-that-name/x", "http://[x", "models:/x@y"):
        with pytest.raises(ConfigError):
            find_run(name)
    assert locate("models:/x@y") is None
    (Path.cwd() / "job.yaml").touch()
    with pytest.raises(ConfigError, match=r"job\.yaml is a file, not the folder of a run"):
        find_run("job.yaml")


def test_evaluations_and_datasets_are_found_where_they_count(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "evaluations" / "c").mkdir(parents=True)
    (root / "evaluations" / "c" / "result.json").touch()
    monkeypatch.setattr("convmlp_platform.tracking.mlflow.replayer.replay", at_work)
    for name in ("c", "evaluations/c"):
        assert main(["replay-tracking", name]) == 2
        assert capsys.readouterr().err == f"error: found {root / 'evaluations' / 'c'}\n"
    assert main(["goodput", "c"]) == 2
    assert "no run c: looked for" in capsys.readouterr().err
