"""A sweep's file and the trials it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.config.load import dump_yaml, load_job, parse_job
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.sweep.sweep_plan import metric_of, told_once, trials_of

ROOT = Path(__file__).parents[3]
JOB: dict[str, Any] = {
    "kind": "train",
    "name": "base",
    "model": {"name": "convmlp_tiny"},
    "data": {"path": "data/digits", "image_size": 32},
    "optimizer": {"lr": 1e-3},
    "training": {"epochs": 2, "global_batch_size": 64, "micro_batch_size": 32},
    "tracking": {"tags": {"team": "vision"}, "register_as": {"name": "digits"}},
}


def sweep(**values: Any) -> SweepJob:
    job = parse_job({"kind": "sweep", "name": "s", "job": JOB} | values, "s.yaml")
    assert isinstance(job, SweepJob)
    return job


def problems_of(**values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        trials_of(sweep(**values))
    return str(caught.value).splitlines()


def test_a_grid_over_variants_makes_a_job_of_each_point() -> None:
    made = trials_of(
        sweep(
            variants=[{"name": "tiny"}, {"name": "resnet", "set": {"model": {"name": "resnet18"}}}],
            space={"optimizer.lr": [1e-3, 2e-3], "seed": [0, 1]},
            set={"training.epochs": 3},
        )
    )
    assert [trial.name for trial in made] == [
        f"{name}-00{n}" for name in ("tiny", "resnet") for n in range(4)
    ]
    last = made[-1]
    assert last.settings == {"model.name": "resnet18", "optimizer.lr": 2e-3, "seed": 1}
    assert (last.job.model.name, last.job.optimizer.lr, last.job.seed, last.job.training.epochs) == (
        "resnet18", 2e-3, 1, 3,
    )  # fmt: skip


def test_a_trial_is_a_run_of_its_own_below_the_sweep() -> None:
    (trial,) = trials_of(sweep(variants=[{"name": "a", "set": {"checkpoint.store": "s3://bucket/runs/"}}]))
    job = trial.job
    assert (job.name, job.checkpoint.path, job.checkpoint.store) == ("a", "runs/s", "s3://bucket/runs/s")
    assert job.tracking.tags == {"team": "vision", "sweep": "s", "trial": "a"}
    assert job.tracking.register_as is None


def test_trials_without_variants_are_numbered() -> None:
    assert [trial.name for trial in trials_of(sweep(space={"seed": [5, 6]}))] == ["trial-000", "trial-001"]


def test_the_launch_section_of_a_sweep_takes_the_place_of_the_jobs() -> None:
    (trial,) = trials_of(
        sweep(
            variants=[{"name": "a"}], launch={"num_workers": 2}, job=JOB | {"launch": {"placement": "SPREAD"}}
        )
    )
    assert (trial.job.launch.num_workers, trial.job.launch.placement) == (2, "PACK")


def test_the_metric_is_the_tasks_own() -> None:
    made = sweep(space={"seed": [0]})
    assert metric_of(made, trials_of(made)) == "eval/top1"
    dense = sweep(space={"seed": [0]}, set={"task.name": "semantic_fpn", "tracking.register_as": None})
    assert metric_of(dense, trials_of(dense)) == "eval/miou"
    mixed = problems_of(variants=[{"name": "a"}, {"name": "b", "set": {"task.name": "retinanet"}}])
    assert mixed[0].startswith("metric: the trials' tasks have different ones (eval/box_ap, eval/top1)")


@given(
    low=st.floats(1e-6, 1.0),
    factor=st.floats(1.0, 1e4),
    kind=st.sampled_from(["uniform", "loguniform"]),
    seed=st.integers(0, 2**31),
    fewer=st.integers(1, 4),
    more=st.integers(1, 4),
)
def test_what_is_drawn_lies_in_its_range_and_stays_when_a_sweep_gets_longer(
    low: float, factor: float, kind: str, seed: int, fewer: int, more: int
) -> None:
    high = low * factor
    space = {"optimizer.lr": {kind: [low, high]}, "seed": {"randint": [3, 5]}}
    short, long = (
        [trial.settings for trial in trials_of(sweep(space=space, seed=seed, samples=count))]
        for count in (fewer, fewer + more)
    )
    assert long[:fewer] == short
    assert all(low <= one["optimizer.lr"] <= high and one["seed"] in (3, 4, 5) for one in long)


def test_every_problem_of_every_trial_is_told_and_common_ones_once() -> None:
    lines = problems_of(
        space={"optimizer.lrr": [1, 2]},
        variants=[{"name": "a", "set": {"model.drop_path": 0.1}}, {"name": "b", "set": {"seed.x": 1}}],
        job=JOB | {"seed": 0},
    )
    assert lines == [
        "trial a-000, a-001: model.drop_path: unknown key; did you mean model.drop_path_rate?",
        "trial a-000, a-001: optimizer.lrr: unknown key; did you mean optimizer.lr?",
        "trial b-000, b-001: set seed.x: seed is the value 0 and has no fields",
    ]
    assert told_once([("a", "x"), ("b", "x"), ("b", "y")], 2) == ["job: x", "trial b: y"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "variants: empty, and so is space"),
        ({"space": {"seed": 3}}, "space.seed: must be a list of values or one of {uniform"),
        ({"space": {"seed": []}}, "space.seed: the list of values is empty"),
        (
            {"space": {"seed": {"randint": [1.5, 2]}}},
            "space.seed.randint: must be [from, to], two whole numbers",
        ),
        ({"space": {"optimizer.lr": {"loguniform": [0, 1]}}}, "must rise, from above 0"),
        ({"space": {"seed": [1]}, "samples": 2}, "samples: 2 would all be alike"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants: a is named twice"),
        ({"variants": [{"name": "a", "set": {"name": "b"}}]}, "name: a sweep names its runs itself"),
        ({"variants": [{"name": "a"}], "job": {"kind": "prepare"}}, "a sweep is over training jobs"),
        ({"variants": [{"name": "a"}], "scheduler": {"name": "ash"}}, "did you mean asha?"),
    ],
)
def test_a_wrong_sweep_is_refused(values: dict[str, Any], told: str) -> None:
    assert any(told in line for line in problems_of(**values))


def test_the_job_may_be_a_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text((ROOT / "jobs" / "pretrain_digits.yaml").read_text())
    file = tmp_path / "sweep.yaml"
    file.write_text("kind: sweep\nname: s\njob: job.yaml\nspace: {seed: [0, 1]}\n")
    found = load_job(file, ["job.training.epochs=5", "max_concurrent=1"])
    assert isinstance(found, SweepJob)
    assert {trial.job.training.epochs for trial in trials_of(found)} == {5}
    file.write_text("kind: sweep\nname: s\njob: jub.yaml\nspace: {seed: [0, 1]}\n")
    with pytest.raises(ConfigError, match=r"jub.yaml: no such job file; did you mean .*job.yaml\?"):
        load_job(file)


def test_a_sweep_written_out_is_the_same_sweep(tmp_path: Path) -> None:
    made = sweep(
        variants=[{"name": "a", "set": {"seed": 1}}], space={"optimizer.lr": {"uniform": [0.1, 0.2]}}
    )
    (tmp_path / "s.yaml").write_text(dump_yaml(made))
    assert load_job(tmp_path / "s.yaml") == made


def test_the_two_comparisons_on_cifar10_have_one_recipe_and_the_decks_networks() -> None:
    found = {}
    for name in ("sweep_cifar10", "sweep_cifar10_small"):
        job = load_job(ROOT / "jobs" / f"{name}.yaml")
        assert isinstance(job, SweepJob)
        found[name] = trials_of(job)
        recipes = {
            (one.job.optimizer, one.job.schedule, one.job.training, one.job.augment, one.job.data)
            for one in found[name]
        }
        assert len(recipes) == 1
    deck = {"convmlp_s", "cyclemlp_b1", "mixer_s16", "resnet18", "regnety_008", "vit_tiny_patch16_224"}
    assert {one.job.model.name for one in found["sweep_cifar10"]} == deck
    assert {one.job.model.name for one in found["sweep_cifar10_small"]} == deck
