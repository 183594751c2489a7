"""A whole run without Ray: it ends, resumes where it stood, and refuses what it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prepared import few_digits
from ranks import run_ranks

from convmlp_platform.checkpoints.checkpointer import load
from convmlp_platform.config.identity import identity_fields, identity_of
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import ConfigError
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.runs.run_folder import claim, run_path
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.preflight.advice import ImageSizes
from convmlp_platform.training.preflight.preflight import preflight
from convmlp_platform.training.run import RunResult, run

SCORES = ("loss", "top1", "top5")


def job(root: Path, **over: Any) -> TrainJob:
    """A run of 12 steps on digits: augmentation, mixup, EMA, stochastic depth, BatchNorm."""
    values: dict[str, Any] = {
        "kind": "train",
        "name": "tiny",
        "seed": 5,
        "model": {"name": "convmlp_tiny", "drop_path_rate": 0.1},
        "data": {"path": str(few_digits()), "image_size": 32, "num_workers": 0},
        "augment": {"crop": "pad", "mixup": 0.2, "hflip": 0.0},
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_epochs": 0.3},
        "training": {
            "epochs": 0.42, "global_batch_size": 16, "micro_batch_size": 4, "ema_decay": 0.9, "log_every_steps": 2
        },
        "eval": {"batch_size": 128},
        "checkpoint": {"path": str(root / "runs"), "every_steps": 2},
        "tracking": {"uri": f"sqlite:///{root}/mlflow.db"},
        "launch": {"use_gpu": False},
    }  # fmt: skip
    for name, value in over.items():
        section, _, field = name.partition("__")
        if field:
            values[section] = {**values[section], field: value}
        else:
            values[section] = value
    return TrainJob.model_validate(values)


class Losses(Callback):
    """Remembers the training losses by step."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_log(self, metrics: dict[str, float], state: Any) -> None:
        self.by_step[state.step] = metrics["train/loss"]


def trained(values: TrainJob) -> tuple[RunResult, dict[int, float]]:
    losses = Losses()
    return run(values, [losses]), losses.by_step


def trained_on(world_size: int, values: TrainJob) -> tuple[RunResult, dict[int, float]]:
    """Rank 0's result; a world of one is this process."""
    return trained(values) if world_size == 1 else run_ranks(trained, world_size, values)[0]


def weights(result: RunResult) -> dict[str, torch.Tensor]:
    assert result.checkpoint is not None
    tensors = load(result.checkpoint).tensors
    return {f"{group}.{name}": t for group, named in tensors.items() for name, t in named.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, dict[int, float]]:
    return trained(job(tmp_path_factory.mktemp("undisturbed")))


def test_a_run_ends_and_starting_it_again_changes_nothing(tmp_path: Path) -> None:
    first, _ = trained(job(tmp_path, training__max_steps=4))
    again, losses = trained(job(tmp_path, training__max_steps=4))
    assert (first.steps, first.already_complete) == (4, False)
    assert (again.steps, again.already_complete, again.checkpoint) == (4, True, first.checkpoint)
    assert losses == {}
    judged = {f"{prefix}/{name}" for prefix in ("eval", "eval_average", "eval_plain") for name in SCORES}
    assert first.metrics.keys() == judged
    assert (tmp_path / "runs" / "tiny" / "plots" / "predictions.png").is_file()


@pytest.mark.parametrize("world_sizes", [(1, 1, 1), pytest.param((2, 1, 1), marks=pytest.mark.slow)])
def test_a_resumed_run_ends_where_the_undisturbed_one_does(
    tmp_path: Path, undisturbed: tuple[RunResult, dict[int, float]], world_sizes: tuple[int, ...]
) -> None:
    """Bitwise at the same world size, within rounding at others: BatchNorm, mixup and augmentation included."""
    whole, curve = undisturbed
    assert whole.steps == 12
    found_curve: dict[int, float] = {}
    for stop, world_size in zip((4, 8, None), world_sizes, strict=True):
        result, losses = trained_on(world_size, job(tmp_path, training__max_steps=stop))
        found_curve |= losses
    same = set(world_sizes) == {1}
    assert found_curve == (curve if same else pytest.approx(curve, rel=1e-3))
    found, wanted = weights(result), weights(whole)
    assert found.keys() == wanted.keys()
    if same:
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert distance(found, wanted) < 1e-3
    report = check_ledger(tmp_path / "runs" / "tiny", dataset=few_digits())
    assert report.ok, report.lines()
    assert [span.world_size for span in report.spans] == list(world_sizes)
    assert (report.steps, report.samples, report.void_samples) == (12, 12 * 16, 0)


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Relative L2 distance of two models' weights. (Single weights may differ more: where a gradient is nearly
    zero, rounding decides its sign, and AdamW steps by the sign.)"""
    flat = [torch.cat([named[name].flatten().double() for name in wanted]) for named in (found, wanted)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def test_another_recipe_under_the_same_name_is_refused_with_the_difference(tmp_path: Path) -> None:
    trained(job(tmp_path, training__max_steps=2))
    with pytest.raises(ConfigError, match=r"another recipe:\n  optimizer.lr: 0.001 → 0.002"):
        trained(job(tmp_path, optimizer__lr=2e-3))


def test_a_run_begun_before_evaluation_counted_keeps_its_identity_and_goes_on(tmp_path: Path) -> None:
    """Its record lacks `eval.*`; the job beside it says how it was evaluated, which is not the default."""
    values = job(tmp_path, training__max_steps=2, eval__crop_pct=1.0)
    whole = identity_fields(values, open_manifest(str(few_digits())).digest)
    old = {name: value for name, value in whole.items() if not name.startswith("eval.")}
    assert old != whole
    folder = run_path(values)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"identity_fields": old}))
    (folder / "job.json").write_text(values.model_dump_json())
    with pytest.raises(ConfigError, match=r"eval\.crop_pct: 1\.0 → 0\.9\n"):
        claim(job(tmp_path, eval__crop_pct=0.9), whole["data.digest"])
    result, _ = trained(values)
    assert result.checkpoint is not None
    assert load(result.checkpoint).facts["identity"] == identity_of(old)
    assert check_ledger(folder, dataset=few_digits()).ok


def test_a_refusal_reaches_every_rank(tmp_path: Path) -> None:
    """Rank 0 finds it; the others must not wait for it in a collective."""
    trained(job(tmp_path, training__max_steps=2))
    assert run_ranks(refused, 2, job(tmp_path, seed=6)) == ["seed: 5 → 6"] * 2


def refused(values: TrainJob) -> str:
    try:
        run(values)
    except ConfigError as error:
        return str(error).splitlines()[1].strip()
    return "trained"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"strategy": "fsdp"}, *({"strategy": "deepspeed", "zero_stage": n} for n in (1, 2, 3))]
)
def test_sharded_strategies_resume_each_others_runs(
    tmp_path: Path, undisturbed: tuple[RunResult, dict[int, float]], settings: dict[str, Any]
) -> None:
    """Begun by one strategy on two ranks, ended by ddp on one: the undisturbed curve and weights."""
    whole, curve = undisturbed
    first, losses = trained_on(2, job(tmp_path, training__max_steps=6, engine=settings))
    assert first.steps == 6
    result, rest = trained_on(1, job(tmp_path))
    assert losses | rest == pytest.approx(curve, rel=1e-3)
    assert distance(weights(result), weights(whole)) < 1e-3


def test_the_check_before_a_start_says_so_too(tmp_path: Path) -> None:
    trained(job(tmp_path, training__max_steps=2))
    problems = preflight(job(tmp_path, seed=6)).problems
    assert any("started with another recipe" in line for line in problems)
    assert "  seed: 5 → 6" in problems
    assert preflight(job(tmp_path)).problems == []


def test_the_check_says_where_a_recipe_makes_little_sense(tmp_path: Path) -> None:
    large = {"epochs": 50, "global_batch_size": 2048, "micro_batch_size": 8, "ema_decay": 0.99996}
    for schedule, updates, told in (
        ({"warmup_epochs": 40}, "11", "warm-up"),
        ({"cooldown_epochs": 51}, "23", "cool-down"),
    ):
        report = preflight(job(tmp_path, training=large, schedule=schedule))
        advice = [line.split()[1] for line in report.summary if line.startswith("advice")]
        assert report.problems == []
        assert advice == ["training.global_batch_size", updates, "training.ema_decay", told]
    usual = job(tmp_path, training={"epochs": 8, "global_batch_size": 16, "micro_batch_size": 4})
    assert not [line for line in preflight(usual).summary if line.startswith("advice")]


def test_the_check_says_what_does_not_suit_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits have 8 px and are squares."""
    long = {"steps": 1000, "global_batch_size": 16, "micro_batch_size": 4}

    def advised(**over: Any) -> list[str]:
        found = preflight(job(tmp_path, **{"training": long, **over})).summary
        return [line.removeprefix("advice   ") for line in found if line.startswith("advice")]

    assert advised() == []
    deep = {"name": "convmlp_s", "drop_path_rate": 0.1}
    assert advised(model=deep) == []
    (depth,) = advised(model=deep, training=long | {"steps": 999})
    assert depth.startswith("stochastic depth (up to 0.1) leaves blocks out of 999 updates")
    (size,) = advised(data__image_size=64)
    assert size.startswith(
        "data.image_size (=64) is more than the images have: half of them are no more than 8 px"
    )
    wide = ImageSizes(height=np.array([100, 100, 300], np.int32), width=np.array([101, 126, 200], np.int32))
    monkeypatch.setattr("convmlp_platform.training.preflight.advice.image_sizes", lambda job, manifest: wide)
    (crop,) = advised()
    assert crop.startswith("augment.crop (=pad) squashes 67% of the images")
    assert advised(augment={}) == []
