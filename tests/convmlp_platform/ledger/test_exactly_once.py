"""Exactly once over kills, resumes and changes of world size: real processes, real batches, real ledgers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_runs import MadeUpRun
from prepared import digits
from ranks import run_ranks
from torch.multiprocessing.spawn import ProcessExitedException

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.errors import DataError
from convmlp_platform.ledger.ledger import LedgerWriter, claim_attempt
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.run import run

TESTS = Path(__file__).parents[2]


def harness(kills: int, seed: int) -> dict[str, Any]:
    """What the harness found, run in a process of its own (it forks, and kills)."""
    command = [sys.executable, str(TESTS / "ledger_harness.py"), "--kills", str(kills), "--seed", str(seed)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout, done.stderr
    totals: dict[str, Any] = json.loads(done.stdout)
    assert not totals["problems"], "\n".join(totals["problems"])
    assert (totals["duplicates"], totals["losses"]) == (0, 0)
    assert totals["kills"] == kills and totals["complete_epochs"] >= totals["runs"]
    assert totals["void_samples"] > 0, "nothing was ever rolled back"
    return totals


def test_some_kills_lose_and_repeat_nothing() -> None:
    totals = harness(kills=5, seed=1)
    assert totals["torn_files"] > 0, "no rank died while it wrote"
    assert totals["most_kills_in_an_epoch"] >= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_lose_and_repeat_nothing() -> None:
    totals = harness(kills=200, seed=0)
    assert totals["world_sizes"].keys() == {str(size) for size in range(1, 9)}
    assert totals["readers"].keys() == {str(workers) for workers in range(5)}
    assert totals["formats"].keys() == {"webdataset", "ffcv"}
    assert len(totals["batch_sizes"]) >= 5 and totals["torn_files"] >= 20


class Die(Callback):
    """The process is killed after a step, as by a machine that is taken away."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_log(self, metrics: dict[str, float], state: Any) -> None:
        if state.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def job(root: Path) -> TrainJob:
    """80 steps on digits, a checkpoint after every fourth."""
    return TrainJob.model_validate(
        {
            "kind": "train",
            "name": "proven",
            "model": {"name": "convmlp_tiny"},
            "data": {"path": str(digits()), "image_size": 32, "num_workers": 0},
            "augment": {"crop": "pad", "hflip": 0.0},
            "optimizer": {"lr": 1e-3},
            "training": {
                "epochs": 0.14,
                "global_batch_size": 16,
                "micro_batch_size": 4,
                "log_every_steps": 1,
            },
            "eval": {"batch_size": 128},
            "checkpoint": {"path": str(root / "runs"), "every_steps": 4},
            "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
            "launch": {"use_gpu": False},
        }
    )


def train(root: Path, die_after: int | None = None) -> int:
    return run(job(root), [Die(die_after)] if die_after else []).steps


@pytest.mark.slow
def test_a_killed_training_run_is_proven(tmp_path: Path) -> None:
    """Two gloo ranks, killed after step 7, and one that goes on from the checkpoint of step 4."""
    with pytest.raises(ProcessExitedException):
        run_ranks(train, 2, tmp_path, 7)
    assert train(tmp_path) == 12
    folder = tmp_path / "runs" / "proven"
    report = check_ledger(folder, dataset=digits())
    assert report.ok, report.lines()
    assert [(s.attempt, s.start, s.stop, s.world_size) for s in report.spans] == [(1, 0, 4, 2), (2, 4, 12, 1)]
    assert (report.samples, report.epochs) == (12 * 16, {0: 12 * 16})
    assert report.void_samples >= 2 * 16
    assert report.checked_payloads
    (folder / "ledger" / "attempt-000001" / "rank-00001-of-00002.ledger").unlink()
    assert not check_ledger(folder).ok


def recorded(folder: Path, dataset: Path, format: str = "webdataset", flips: int = 0) -> Path:
    """A made-up run whose payloads have the dataset's checksums, `flips` of them wrong."""
    manifest = open_manifest(str(dataset))
    split = ShardedSplit(dataset, manifest, "train", format)
    checksums = np.concatenate([split.index(number).checksum for number in range(len(split.shards))])
    checksums[:flips] ^= 1
    order = SampleOrder(len(split), 4, seed=1)
    made = MadeUpRun(folder, order, 48, 8, manifest.digest, format, checksums.view("int64"))
    made.attempt(2, 0, 30)
    return made.path


def test_payloads_other_than_the_dataset_s_are_found(tmp_path: Path) -> None:
    assert check_ledger(recorded(tmp_path / "sound", digits()), dataset=digits()).ok
    report = check_ledger(recorded(tmp_path / "wrong", digits(), flips=1438), dataset=digits())
    assert report.findings.counts == {"payloads other than the dataset's": 30 * 48}
    line = report.findings.shown["payloads other than the dataset's"][0]
    assert line.endswith("the payload read has another checksum than the dataset's index")


def test_another_dataset_is_no_evidence(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", digits())
    made = MadeUpRun(tmp_path / "other", digest="sha256:" + "2" * 64)
    LedgerWriter(made.ledger, made.header(0, 1, claim_attempt(made.ledger), 0, 0)).append(
        0, made.used(0, 0, 1)
    )
    with pytest.raises(DataError, match="but the run used sha256:2222"):
        check_ledger(made.path, dataset=digits())
    with pytest.raises(DataError, match="no dataset manifest"):
        check_ledger(folder, dataset=tmp_path / "nowhere")
