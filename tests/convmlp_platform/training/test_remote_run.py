"""A job on a dataset at s3:// does what it does on the folder, and is checked before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prepared import few_digits
from s3_server import BUCKET, s3_server
from test_run import job, trained, weights

from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.distributed import World
from convmlp_platform.runs.run_folder import claim
from convmlp_platform.training.build.parts import build_train_loader
from convmlp_platform.training.preflight.preflight import preflight
from data_prep.copy_dataset import copy_dataset
from data_prep.storage.remote_files import open_filesystem

SENT = True
URL = f"s3://{BUCKET}/digits"


@pytest.fixture(autouse=True)
def s3() -> Iterator[None]:
    with s3_server():
        copy_dataset(str(few_digits()), URL, progress=lambda _line: None)
        yield


def on_s3(tmp_path: Path) -> dict[str, object]:
    return {"data__path": URL, "data__cache_dir": str(tmp_path / "cache"), "data__num_workers": 1}


def test_a_job_on_s3_is_checked_and_reads_what_is_in_the_folder(tmp_path: Path) -> None:
    there, here = job(tmp_path / "there", **on_s3(tmp_path)), job(tmp_path / "here")
    assert preflight(there).problems == []
    world = World(0, 0, 1, torch.device("cpu"))
    manifest = open_manifest(URL)
    loaders = [
        build_train_loader(each, manifest, claim(each, manifest.digest), world) for each in (there, here)
    ]
    assert loaders[0].read_ahead is not None
    assert loaders[1].read_ahead is None
    for ours, theirs in zip(*(loader.steps(3, 5) for loader in loaders), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.checksums, other.checksums)
            assert torch.equal(one.images, other.images)
    fs, path = open_filesystem(f"{URL}/webdataset/train-000000.tar")
    fs.rm_file(path)
    (problem,) = preflight(there).problems
    assert "train-000000.tar is missing" in problem


@pytest.mark.slow
def test_a_run_on_s3_is_the_run_on_the_folder(tmp_path: Path) -> None:
    here, _ = trained(job(tmp_path / "here"))
    there, _ = trained(job(tmp_path / "there", **on_s3(tmp_path)))
    assert all(
        torch.equal(a, b) for a, b in zip(weights(here).values(), weights(there).values(), strict=True)
    )
