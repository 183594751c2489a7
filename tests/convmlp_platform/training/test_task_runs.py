"""Detection and segmentation are jobs like any other: every strategy trains, evaluates and resumes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from annotated import stripes
from pydantic import ValidationError
from ranks import run_ranks
from tiny_dense import DATASETS, tiny_job

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.training.run import run


def job(folder: Path, kind: str, **sections: Any) -> TrainJob:
    """Of two epochs."""
    training = {"epochs": 2} | sections.pop("training", {})
    return tiny_job(kind, folder, training=training, **sections)


def metrics_of(folder: Path, task: str, strategy: str, data_format: str = "webdataset") -> dict[str, float]:
    shown = job(folder, task, engine={"strategy": strategy}, data={"format": data_format})
    return run(shown).metrics


@pytest.mark.slow
@pytest.mark.parametrize("task", ["semantic_fpn", "retinanet"])
def test_two_ranks_and_the_other_format_train_the_same(task: str, tmp_path: Path) -> None:
    alone = metrics_of(tmp_path / "alone", task, "ddp")
    both = run_ranks(metrics_of, 2, tmp_path / "both", task, "ddp", "ffcv")
    assert both[0] == both[1] and both[0].keys() == alone.keys()
    # Far from trained, which of two faint boxes comes first is a matter of the last digit: the loss is not.
    assert both[0]["eval/loss"] == pytest.approx(alone["eval/loss"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("task", DATASETS)
@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
def test_sharded_strategies_train_them(task: str, strategy: str, tmp_path: Path) -> None:
    alone = metrics_of(tmp_path / "alone", task, "ddp")
    (first, _) = run_ranks(metrics_of, 2, tmp_path / "both", task, strategy)
    assert first["eval/loss"] == pytest.approx(alone["eval/loss"], rel=1e-2)


@pytest.mark.slow
def test_a_finished_run_starts_no_more_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    first = run(job(tmp_path, "semantic_fpn", training={"max_steps": 1}))
    whole = run(job(tmp_path, "semantic_fpn"))
    assert first.metrics != whole.metrics
    straight = run(job(tmp_path / "straight", "semantic_fpn"))
    assert whole.metrics == straight.metrics


def test_datasets_of_another_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.name \(=retinanet\) needs a dataset of detection"):
        run(job(tmp_path, "retinanet", data={"path": str(stripes())}))


def test_heads_of_another_size_are_refused(tmp_path: Path) -> None:
    message = "model.num_classes: the head of RetinaNet has 7 classes, the dataset has 3"
    with pytest.raises(ConfigError, match=message):
        run(job(tmp_path, "retinanet", model={"num_classes": 7}))


def test_networks_without_feature_maps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose a hierarchical network"):
        run(job(tmp_path, "semantic_fpn", model={"name": "vit_tiny_patch16_224"}))


def test_sections_are_checked() -> None:
    with pytest.raises(ValidationError, match="must be a range of positive factors"):
        job(Path("unused"), "semantic_fpn", task={"scale": [2.0, 0.5]})
