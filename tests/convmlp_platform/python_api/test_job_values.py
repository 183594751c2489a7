"""Jobs from Python: one vocabulary with job files, the same messages, and recipes that are the job files' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from prepared import digits

import convmlp_platform as cp
from convmlp_platform.config.schema import EvaluateJob, PrepareJob, TrainJob
from convmlp_platform.python_api import folder_recipes
from convmlp_platform.python_api.job_values import laid_over

ROOT = Path(__file__).parents[3]
JOB = ROOT / "jobs/pretrain_digits.yaml"


def train_job(*overrides: str, **given: Any) -> TrainJob:
    job = cp.load_job(JOB, *overrides, **given)
    assert isinstance(job, TrainJob)
    return job


def test_values_are_laid_over_a_job_files_in_three_ways() -> None:
    job = train_job(
        "optimizer.lr=1e-3", "seed=5", settings={"training.max_steps": np.int64(7)}, optimizer={"eps": 1e-6}, seed=6
    )  # fmt: skip
    assert (job.optimizer.lr, job.optimizer.eps, job.optimizer.weight_decay) == (1e-3, 1e-6, 0.05)
    assert (job.training.max_steps, job.training.epochs, job.seed) == (7, 16, 6)
    assert train_job(optimizer={"lr": 1e-3}, settings={"optimizer.lr": 2e-3}).optimizer.lr == 2e-3


def test_values_may_be_pythons_own() -> None:
    settings = {
        "data.path": Path("x/y"),
        "optimizer.betas": (0.9, torch.tensor(0.5)),
        "optimizer.lr": np.float32(0.5),
    }
    job = train_job(settings=settings, tracking={"register_as": None})
    assert (job.data.path, job.optimizer.betas, job.optimizer.lr) == ("x/y", (0.9, 0.5), 0.5)
    assert job.tracking.register_as is None and job.tracking.experiment == "convmlp-digits"


def test_a_section_of_another_kind_has_nothing_of_the_old_one() -> None:
    values = {"source": {"kind": "image_folder", "path": "x"}, "keep": {"train": 1}}
    assert laid_over(values, {"source": {"kind": "digits"}})["source"] == {"kind": "digits"}
    assert values["source"] == {"kind": "image_folder", "path": "x"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimiser": {}}, r"pretrain_digits.yaml: optimiser: unknown key; did you mean optimizer\?"),
        ({"settings": {"optimizer.learning_rate": 1}}, r"did you mean optimizer\.lr\?"),
        ({"settings": {"optimizer.lr": "fast"}}, r"yaml: optimizer\.lr: must be a number"),
        ({"settings": {"optimizer.lr.x": 1}}, r"settings\['optimizer.lr.x'\]: optimizer.lr is the value"),
        ({"settings": {"": 1}}, r"settings: '' is no name"),
        ({"training": {"epochs": -1}}, r"training\.epochs: must be"),
    ],
    ids=str,
)
def test_mistakes_are_told_as_those_of_job_files(given: dict[str, Any], message: str) -> None:
    with pytest.raises(cp.ConfigError, match=message):
        cp.load_job(JOB, **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cp.train(out="runs/x"), r"train\(\): model, data: needed"),
        (lambda: cp.evaluate(model="runs/x"), r"evaluate\(\): data: needed"),
        (lambda: cp.prepare(), r"prepare\(\): source: required"),
        (lambda: cp.prepare("photos", out="data/x"), r"source\.path: .*/photos is not a folder"),
        (lambda: cp.train(out="runs/x", model="m", data="nothing"), r"no dataset nothing: neither a folder"),
        (
            lambda: cp.train(out="runs/x", model="m", data="a/b"),
            r"train\(\): .*auto follows .*no dataset manifest",
        ),
        (lambda: cp.train(JOB, data=digits(), settings={"model.name": "convmlp_x"}), "convmlp_x"),
        (lambda: cp.train(JOB, data=digits(), out="runs/a b"), "yaml: name: must"),
        (
            lambda: cp.train(ROOT / "jobs/evaluate_digits.yaml"),
            r"kind: must be train \(got evaluate\): evaluate\(\)",
        ),
        (lambda: cp.evaluate(ROOT / "jobs/sweep_cifar10.yaml"), r"`convmlp run` runs a sweep job"),
        (lambda: cp.train(JOB, data=digits(), ray="here"), r"launch\.address must be local, host:port"),
    ],
    ids=range(11),
)
def test_a_call_that_can_not_be_is_refused(
    call: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    with pytest.raises(cp.PlatformError, match=message):
        call()
    assert not (tmp_path / "runs").exists()


def test_a_wrong_setting_is_found_before_a_folder_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/train/a").mkdir(parents=True)
    with pytest.raises(cp.ConfigError, match=r"training\.epoch: unknown key"):
        cp.train(out="runs/x", model="convmlp_tiny", data="photos", settings={"training.epoch": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_the_recipes_are_those_of_the_job_files() -> None:
    folder = yaml.safe_load((ROOT / "jobs/finetune_folder.yaml").read_text())
    del folder["name"], folder["tracking"], folder["model"]["name"], folder["data"]["path"]
    assert laid_over(folder, {}, {"schedule.min_lr": 1e-5}) == folder_recipes.TRAIN
    preparation = yaml.safe_load((ROOT / "jobs/prep_folder.yaml").read_text())
    del preparation["name"], preparation["source"], preparation["output"]["path"]
    ours = laid_over(
        folder_recipes.PREPARE, {"name": "x", "output": {"path": "x"}, "source": {"kind": "digits"}}
    )
    theirs = laid_over(ours, preparation)
    assert PrepareJob.model_validate(ours) == PrepareJob.model_validate(theirs)


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys, convmlp_platform as cp; assert 'train' in dir(cp); heavy = ('torch', 'numpy', 'pydantic', 'ray'); "
        "print([name for name in heavy if name in sys.modules]); cp.load_job; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        cp.fit  # noqa: B018
    assert set(cp.__all__) == set(cp._PLACES) and all(getattr(cp, name) is not None for name in cp.__all__)


def test_a_job_of_load_job_is_run_as_it_is() -> None:
    job = cp.load_job(ROOT / "jobs/evaluate_digits.yaml", settings={"data.split": "train"})
    assert isinstance(job, EvaluateJob) and job.data.split == "train"
