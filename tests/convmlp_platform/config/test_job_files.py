"""The job files that are shipped: each loads, can be executed, and says what a reader needs to know."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from convmlp_platform.config.load import flatten, load_job
from convmlp_platform.config.schema import PrepareJob, TrainJob

ROOT = Path(__file__).parents[3]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
SHIPPED = {
    "prep_imagenet",
    "pretrain_convmlp",
    "prep_digits",
    "pretrain_digits",
    "prep_cifar10",
    "pretrain_cifar10",
}


def test_the_promised_jobs_are_there() -> None:
    assert {job.stem for job in JOBS} >= SHIPPED


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_loads_and_can_be_executed(path: Path) -> None:
    load_job(path)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env -S python -m convmlp_platform"
    header = "\n".join(line for line in lines[1:] if line.startswith("#"))
    for word in ("command", "hardware", "time", "result"):
        assert f"# {word} " in header
    assert os.access(path, os.X_OK)


def test_git_keeps_jobs_executable() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--stage", "jobs"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    modes = {line.split("\t")[1]: line.split()[0] for line in listed.splitlines()}
    assert {name: mode for name, mode in modes.items() if mode != "100755"} == {}


def test_training_jobs_read_what_preparation_jobs_write() -> None:
    jobs = [load_job(path) for path in JOBS]
    written = {str(job.output.path): job.output.formats for job in jobs if isinstance(job, PrepareJob)}
    for job in jobs:
        if isinstance(job, TrainJob):
            assert job.data.format in written[job.data.path]
    assert len({job.name for job in jobs}) == len(jobs)


def test_pretrain_convmlp_is_the_published_recipe() -> None:
    """The authors' configs/classification/convmlp_s_imagenet.yml and classification.py at SHI-Labs/
    Convolutional-MLPs 092bf71: AdamW, lr 5e-4 at 8 x 128 images, weight decay 0.05, 300 epochs and 10 of
    cool-down, and so on. Only the precision is not theirs (fp16 there)."""
    flat = flatten(load_job(ROOT / "jobs/pretrain_convmlp.yaml"))
    published = {
        "seed": 42,
        "model.name": "convmlp_s",
        "model.drop_path_rate": 0.1,
        "data.image_size": 224,
        "augment.crop": "random_resized",
        "augment.scale": "[0.08, 1.0]",
        "augment.ratio": "[0.75, 1.3333333333333333]",
        "augment.interpolation": "bicubic",
        "augment.hflip": 0.5,
        "augment.rand_augment": "rand-m9-mstd0.5-inc1",
        "augment.random_erasing": 0.25,
        "augment.mixup": 0.8,
        "augment.cutmix": 1.0,
        "augment.mix_prob": 1.0,
        "augment.mix_switch_prob": 0.5,
        "eval.crop_pct": 0.9,
        "eval.interpolation": "bicubic",
        "loss.label_smoothing": 0.1,
        "optimizer.name": "adamw",
        "optimizer.lr": 5e-4,
        "optimizer.weight_decay": 0.05,
        "optimizer.betas": "[0.9, 0.999]",
        "optimizer.eps": 1e-8,
        "schedule.name": "cosine",
        "schedule.warmup_epochs": 5,
        "schedule.warmup_lr": 1e-4,
        "schedule.min_lr": 1e-5,
        "schedule.cooldown_epochs": 10,
        "training.epochs": 300,
        "training.global_batch_size": 8 * 128,
        "training.micro_batch_size": 128,
        "training.clip_grad_norm": None,
        "training.ema_decay": 0.99996,
        "launch.num_workers": 8,
    }
    assert {name: flat[name] for name in published} == published
    assert (flat["tracking.register_as.name"], flat["tracking.register_as.alias"]) == (
        "convmlp-s",
        "champion",
    )
