"""Two trainings as a user starts them, in a real SQLite store: `digits`, and `tuned`, which begins from its version."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest import mock

import pytest
from prepared import few_digits
from undrawn import without_drawing

from convmlp_platform.cli.main import main
from convmlp_platform.tracking.mlflow.feeder import Feeder
from convmlp_platform.tracking.mlflow.replayer import run_replayer

JOB = """\
kind: train
name: digits
seed: 5
model: {{name: convmlp_tiny}}
data: {{path: {data}, image_size: 32, num_workers: 0}}
augment: {{crop: pad, hflip: 0.0}}
optimizer: {{lr: 1e-3}}
schedule: {{warmup_epochs: 0}}
training: {{epochs: 1, max_steps: 4, global_batch_size: 16, micro_batch_size: 8, ema_decay: 0.9, log_every_steps: 2}}
eval: {{batch_size: 128, every_steps: 2}}
tracking: {{experiment: digits, register_as: {{name: digits, automatic: true}}}}
launch: {{use_gpu: false}}
"""


class _Soon:
    """To a replayer: its parent wants all to be sent at once."""

    def wait(self, seconds: float) -> float:
        return 30.0


def _send(feeder: Feeder, timeout: float = 30.0) -> bool:
    return run_replayer(feeder._run_dir, feeder._uri, _Soon()) == 0


@contextmanager
def sent_here() -> Iterator[None]:
    """Within: this process does what the replayer's does, at the first record and at the end."""
    begun: set[Path] = set()

    def ensure_alive(feeder: Feeder) -> None:
        if feeder._run_dir not in begun:
            begun.add(feeder._run_dir)
            _send(feeder)

    with mock.patch.multiple(Feeder, ensure_alive=ensure_alive, close=_send):
        yield


@dataclass(frozen=True)
class RegisteredRuns:
    """`root`: CONVMLP_ROOT, with the store and the job file; `data`: the dataset."""

    root: Path
    data: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root}/mlflow.db"


def train(root: Path, *words: str) -> int:
    """`convmlp run` of the job in `root`, sent from this process."""
    with sent_here(), without_drawing():
        return main(["run", str(root / "job.yaml"), "--no-ray", *words])


@cache
def registered_runs() -> RegisteredRuns:
    """Both, trained once a test session by `somebody`; the runs' own folders and the job file are gone since then."""
    with pytest.MonkeyPatch.context() as patch:
        root = Path(mkdtemp(prefix="convmlp-test-"))
        patch.setenv("CONVMLP_ROOT", str(root))
        patch.setenv("CONVMLP_USER", "somebody")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        made = _train_both(root)
    shutil.rmtree(root / "runs")  # the registry alone must do
    (root / "job.yaml").unlink()
    return made


def _train_both(root: Path) -> RegisteredRuns:
    (root / "job.yaml").write_text(JOB.format(data=few_digits()))
    assert train(root) == 0
    start = ("name=tuned", "model.init_from=models:/digits@champion", "tracking.register_as.name=tuned")
    assert train(root, *(word for one in (*start, "training.max_steps=2") for word in ("--set", one))) == 0
    return RegisteredRuns(root, few_digits())
