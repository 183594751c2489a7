"""What the papers' recipes need, in a run: counted in steps, each image used three times, one parameter group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import few_digits
from test_run import job, trained, weights

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.training.build.build_transforms import eval_transform_of, train_transform_of
from convmlp_platform.training.build.bundle_spec import bundle_spec
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.preflight.preflight import preflight
from convmlp_platform.training.run import run
from data_prep.dataset.manifest import load_manifest


def counted_in_steps(root: Path, **over: Any) -> TrainJob:
    """10 steps, evaluated after every fourth."""
    return job(
        root,
        training__epochs=None,
        training__steps=10,
        eval__every_steps=4,
        schedule={"name": "poly", "power": 0.9, "warmup_steps": 2},
        augment__repeats=3,
        optimizer={"lr": 1e-3, "decay": "all"},
        **over,
    )


class Evaluations(Callback):
    """The steps after which the run was evaluated."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_evaluation(self, metrics: dict[str, float], state: Any) -> None:
        self.steps.append(state.step)


@pytest.mark.slow
def test_a_run_in_steps_of_repeated_images_resumes_exactly(tmp_path: Path) -> None:
    whole, _ = trained(counted_in_steps(tmp_path / "whole"))
    evaluations = Evaluations()
    for stop in (5, None):
        result = run(counted_in_steps(tmp_path, training__max_steps=stop), [evaluations])
    assert (whole.steps, result.steps) == (10, 10)
    assert evaluations.steps == [4, 5, 8, 10]
    found, wanted = weights(result), weights(whole)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    report = check_ledger(tmp_path / "runs" / "tiny", dataset=few_digits())
    assert report.ok, report.lines()
    assert "each sample exactly 3 times in 3 epochs" in report.lines()[-1]
    assert list(report.epochs) == [0, 1, 2] and sum(report.epochs.values()) == 160


def test_preflight_says_what_a_run_in_steps_would_do(tmp_path: Path) -> None:
    report = preflight(counted_in_steps(tmp_path))
    assert report.problems == []
    steps = next(line for line in report.summary if line.startswith("steps"))
    per_epoch = load_manifest(few_digits()).splits["train"].num_samples / 16
    assert steps == (
        f"steps    10 of 16 images each; an epoch is {per_epoch:,.1f} steps, the schedule {10 / per_epoch:g} epochs"
    )
    too_long = job(tmp_path, schedule={"warmup_steps": 1000})
    (problem,) = preflight(too_long).problems
    assert problem == (
        "schedule.warmup_steps (=1000) takes more than the run's 12 whole steps: lower it, or raise training.epochs "
        "(=0.42)"
    )


def test_a_jobs_own_mean_and_deviation_reach_all_that_normalises(tmp_path: Path) -> None:
    """Weights that were trained with others than the dataset's own need them everywhere."""
    half = [0.5, 0.5, 0.5]
    own, manifest = job(tmp_path, data__mean=half, data__std=half), load_manifest(few_digits())
    white = torch.full((3, 1, 1), 255, dtype=torch.uint8)
    for transform in (train_transform_of(own, manifest), eval_transform_of(own, manifest)):
        assert torch.allclose(transform.normalize(white), torch.ones(3, 1, 1))
    spec = bundle_spec(own, manifest, {})
    assert (spec.mean, spec.std) == (tuple(half), tuple(half))
    theirs = bundle_spec(job(tmp_path), manifest, {})
    assert (theirs.mean, theirs.std) == (manifest.mean, manifest.std)


@pytest.mark.parametrize(
    ("use_gpu", "there", "missing"),
    [(False, "gcc", "g++"), (True, "g++", "gcc, clang"), ("auto", "other", "g++, gcc, clang")],
)
def test_a_compiled_run_needs_a_compiler(
    use_gpu: bool | str, there: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = job(tmp_path, engine={"compile": True}, launch={"use_gpu": use_gpu})
    compilers = tmp_path / "compilers"
    compilers.mkdir()
    for name in (there, *missing.split(", ")):
        (compilers / name).write_text("#!/bin/sh\n")
        (compilers / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(compilers))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    assert preflight(compiled).problems == []
    for name in missing.split(", "):
        (compilers / name).unlink()
    (problem,) = preflight(compiled).problems
    assert problem.startswith(f"engine.compile (=true): torch.compile needs a compiler ({missing}) on PATH")
    monkeypatch.setenv("CC" if use_gpu else "CXX", str(compilers / there))
    assert preflight(compiled).problems == []
