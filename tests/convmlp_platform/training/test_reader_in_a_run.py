"""A run over a damaged dataset: it fails naming the sample, or goes on and records what it left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prepared import digits

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.errors import DataError
from convmlp_platform.training.run import run


def damaged_digits(folder: Path, *formats: str) -> Path:
    """Digits with a flipped bit in one of every ten webdataset samples of the train split."""
    copy = shutil.copytree(digits(*formats), folder)
    source = ShardedSplit(copy, open_manifest(str(copy)), "train", "webdataset")
    for sample in range(0, len(source), 10):
        number, position = source.locate(sample)
        shard, place = copy / source.shards[number].file, int(source.index(number).offset[position]) + 40
        content = bytearray(shard.read_bytes())
        content[place] ^= 1
        shard.write_bytes(content)
    return copy


def job(root: Path, data: Path, **policy: Any) -> TrainJob:
    return TrainJob.model_validate(
        {
            "kind": "train",
            "name": "damaged",
            "model": {"name": "convmlp_tiny"},
            "data": {"path": str(data), "image_size": 32, "num_workers": 0, **policy},
            "augment": {"crop": "pad"},
            "optimizer": {"lr": 1e-3},
            "training": {"epochs": 0.05, "global_batch_size": 16, "micro_batch_size": 8},
            "eval": {"batch_size": 256},
            "checkpoint": {"path": str(root / "runs")},
            "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
            "launch": {"use_gpu": False},
        }
    )


@pytest.mark.slow
def test_damage_ends_a_run_unless_the_job_says_otherwise(tmp_path: Path) -> None:
    data = damaged_digits(tmp_path / "digits")
    with pytest.raises(DataError, match=r"train-.*is damaged.*convmlp data repair"):
        run(job(tmp_path, data))
    with pytest.raises(DataError, match=r"data.max_quarantined \(=0.0001\) allows 0"):
        run(job(tmp_path / "second", data, on_damage="quarantine"))


def test_a_run_goes_on_without_its_damaged_samples(tmp_path: Path) -> None:
    data = damaged_digits(tmp_path / "digits")
    result = run(job(tmp_path, data, on_damage="quarantine", max_quarantined=0.2))
    assert result.steps == 4
    lines = (tmp_path / "runs" / "damaged" / "quarantine.jsonl").read_text().splitlines()
    samples = [json.loads(line)["sample"] for line in lines]
    assert samples
    assert len(set(samples)) == len(samples)
    assert all(sample % 10 == 0 for sample in samples)
    assert {json.loads(line)["outcome"] for line in lines} == {"replaced"}


def test_a_run_reads_damaged_samples_from_the_other_format(tmp_path: Path) -> None:
    data = damaged_digits(tmp_path / "digits", "webdataset", "ffcv")
    run(job(tmp_path, data, on_damage="quarantine", max_quarantined=0.0))
    lines = (tmp_path / "runs" / "damaged" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["outcome"] for line in lines} == {"repaired"}
