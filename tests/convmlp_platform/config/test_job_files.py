"""The job files that are shipped: each loads, can be executed, and says what a reader needs to know."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from machines import eight_gpus
from prepared import described

from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import Job, PrepareJob, TrainJob

ROOT = Path(__file__).parents[3]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
SHIPPED = {
    "prep_imagenet",
    "pretrain_convmlp",
    "prep_digits",
    "pretrain_digits",
    "prep_cifar10",
    "pretrain_cifar10",
    "prep_folder",
    "finetune_folder",
}


def loaded(path: Path) -> Job:
    """The job, with dataset and machines imagined where it asks for them."""
    return load_job(path, open_manifest=lambda _path: described(42), of_machines=eight_gpus)


def test_the_promised_jobs_are_there() -> None:
    assert {job.stem for job in JOBS} >= SHIPPED


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_loads_and_can_be_executed(path: Path) -> None:
    loaded(path)
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
    jobs = [loaded(path) for path in JOBS]
    written = {str(job.output.path): job.output.formats for job in jobs if isinstance(job, PrepareJob)}
    for job in jobs:
        if isinstance(job, TrainJob):
            assert job.data.format in written[job.data.path]
    assert len({job.name for job in jobs}) == len(jobs)
