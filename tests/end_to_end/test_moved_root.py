"""A root with a dataset, a run and a registry is copied, then moved: all commands go on in the new place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from prepared import few_digits
from tree_state import state_of

JOB = Path(__file__).parents[2] / "jobs" / "pretrain_digits.yaml"
MODEL = "models:/convmlp-digits@champion"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def convmlp(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "CONVMLP_"))}
    done = subprocess.run(
        [sys.executable, "-m", "convmlp_platform", *words],
        cwd=root.parent,  # not the root, or the store would be found without its name
        env=kept | {"CONVMLP_ROOT": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def train(root: Path, steps: int) -> str:
    """What it said besides its results."""
    values = {
        "training.max_steps": steps,
        "eval.every_epochs": 1,
        "checkpoint.every_steps": 7,
        "checkpoint.keep": 20,
        "engine.precision": "fp32",
        "launch.num_workers": 1,
        "tracking.register_as.automatic": "false",
    }
    sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    return convmlp(root, "run", "--no-ray", str(JOB), *sets).stderr


def picture(root: Path) -> str:
    with tarfile.open(next((root / "data/digits/webdataset").glob("val-*.tar"))) as shard:
        member = next(one for one in shard if one.name.endswith(".png"))
        (root.parent / "digit.png").write_bytes(shard.extractfile(member).read())  # type: ignore[union-attr]
    return str(root.parent / "digit.png")


def look(root: Path) -> None:
    """All that reads: the registry, the model, the run's checkpoints, one of its steps done again."""
    assert json.loads(convmlp(root, "predict", MODEL, picture(root), "--json").stdout)
    listed = convmlp(root, "checkpoints", "list", "pretrain-digits", "--mlflow").stdout
    assert f"{root}/runs/pretrain-digits/checkpoints/" in listed, listed
    assert "to the last bit" in convmlp(root, "replay", "--run", "pretrain-digits", "--step", "20").stdout
    history = json.loads(convmlp(root, "registry", "history", "convmlp-digits", "--json").stdout)
    assert [entry["kind"] for entry in history] == ["promoted"]


def send_again(root: Path, run_id: str) -> None:
    (root / "runs/pretrain-digits/tracking/feed.json").unlink()
    for picture in (root / "mlartifacts" / run_id).rglob("curves.png"):
        picture.unlink()
    assert run_id in convmlp(root, "replay-tracking", "pretrain-digits").stdout
    assert list((root / "mlartifacts" / run_id).rglob("curves.png"))


def run_of(root: Path) -> str:
    feed = json.loads((root / "runs/pretrain-digits/tracking/feed.json").read_text())
    return str(feed["run_id"])


def test_a_root_is_copied_and_moved(tmp_path: Path) -> None:
    first, second, third = tmp_path / "first root", tmp_path / "copy, 100%", tmp_path / "far" / "third"
    shutil.copytree(few_digits(), first / "data" / "digits")
    train(first, 42)
    before, run_id = state_of(first), run_of(first)

    shutil.copytree(first, second)
    said = train(second, 49)  # the same run in MLflow, its model in the copy's registry
    assert f"{second}/mlflow.db was copied from {first}" in said and run_of(second) == run_id
    convmlp(second, "registry", "promote", "convmlp-digits", "--data", "data/digits")
    look(second)
    send_again(second, run_id)
    assert state_of(first) == before

    third.parent.mkdir()
    second.rename(third)
    assert f"{third}/mlflow.db was moved from {second}" in train(third, 56) and run_of(third) == run_id
    look(third)
    send_again(third, run_id)
    assert not second.exists() and state_of(first) == before
