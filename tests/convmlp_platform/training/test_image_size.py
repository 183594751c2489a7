"""Images of a size that a network can't take, and datasets of another task, are told before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from annotated import rectangles, stripes
from prepared import digits

from convmlp.tasks.heads.pyramid import create_body
from convmlp_platform.config.load import parse_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.training.preflight.image_size import sides_refused, single_value, size_refused
from convmlp_platform.training.preflight.preflight import preflight


def job(name: str, size: int, micro_batch: int = 16, path: Path | None = None, **sections: Any) -> TrainJob:
    values: dict[str, Any] = {
        "kind": "train",
        "name": "x",
        "model": {"name": name},
        "data": {"path": str(path or "nowhere"), "image_size": size, "eval_split": "train"},
        "optimizer": {"lr": 1},
        "training": {"epochs": 9, "global_batch_size": 32, "micro_batch_size": micro_batch},
    }
    for section, fields in sections.items():
        values[section] = values.get(section, {}) | fields
    parsed = parse_job(values, "x")
    assert isinstance(parsed, TrainJob)
    return parsed


@pytest.mark.parametrize(
    ("name", "size", "works"),
    [
        pytest.param("mixer_s16", 100, 112, marks=pytest.mark.slow),
        ("pure_mlp_s", 8, 32),
        ("vit_tiny_patch16_224", 8, 16),
    ],
)
def test_a_size_that_is_refused_comes_with_one_that_works(name: str, size: int, works: int) -> None:
    told = size_refused(job(name, size), 10)
    assert told is not None
    assert told.startswith(f"data.image_size (={size}): {name} can't take images of {size} x {size} pixels: ")
    assert told.endswith(f"; {works} pixels work")
    assert size_refused(job(name, works), 10) is None


@pytest.mark.parametrize("name", ["convmlp_tiny", "cyclemlp_b1", "resnet18"])
def test_hierarchical_networks_take_tiny_images(name: str) -> None:
    assert size_refused(job(name, 8), 10) is None


def test_one_tiny_image_a_micro_batch_is_too_few_for_batch_norm() -> None:
    told = single_value(job("resnet18", 32, 1), 10)
    assert told is not None
    assert told.startswith("training.micro_batch_size (=1): BatchNorm of resnet18")
    assert single_value(job("resnet18", 32, 2), 10) is None
    assert single_value(job("resnet18", 64, 1), 10) is None
    assert single_value(job("convmlp_tiny", 32, 1), 10) is None


def problems_of(values: TrainJob, tmp_path: Path) -> list[str]:
    checkpoint = values.checkpoint.model_copy(update={"path": str(tmp_path)})
    tracking = values.tracking.model_copy(update={"uri": f"sqlite:///{tmp_path}/m.db"})
    return preflight(values.model_copy(update={"checkpoint": checkpoint, "tracking": tracking})).problems


def test_check_tells_it_by_its_field(tmp_path: Path) -> None:
    (problem,) = problems_of(job("mixer_s16", 20, path=digits()), tmp_path)
    assert problem.startswith("data.image_size (=20): mixer_s16 can't take images")
    (problem,) = problems_of(job("resnet18", 32, 1, path=digits()), tmp_path)
    assert problem.startswith("training.micro_batch_size (=1)")


@pytest.mark.parametrize(("task", "data"), [("retinanet", rectangles), ("semantic_fpn", stripes)])
def test_dense_tasks_need_the_largest_stride(tmp_path: Path, task: str, data: Any) -> None:
    small = job(
        "convmlp_tiny", 16, 4, data(), task={"name": task, "pyramid_channels": 16}, data={"num_streams": 1}
    )
    problems = problems_of(small, tmp_path)
    assert [
        one
        for one in problems
        if one.startswith("data.image_size (=16): " + task + " needs images of 32 pixels")
    ]


def test_sides_that_contradict_each_other() -> None:
    from convmlp_platform.data.dataset.split import open_manifest

    values = job("convmlp_tiny", 64, 4, task={"name": "retinanet", "max_side": 48})
    told = sides_refused(values, open_manifest(str(rectangles())))
    assert told is not None
    assert "task.max_side" in told
    assert "48" in told


def test_networks_of_one_size_are_no_backbones() -> None:
    with pytest.raises(ValueError, match=r"'pure_mlp_s' takes images of one size only \(224x224 pixels\)"):
        create_body("pure_mlp_s", (8, 16, 32))


@pytest.mark.parametrize(
    ("task", "data", "needs"),
    [("classification", stripes, "classification"), ("retinanet", digits, "detection")],
)
def test_a_dataset_of_another_task(tmp_path: Path, task: str, data: Any, needs: str) -> None:
    fields = {"name": task} | ({} if task == "classification" else {"pyramid_channels": 16})
    problems = problems_of(job("convmlp_tiny", 64, 4, data(), task=fields, data={"num_streams": 1}), tmp_path)
    assert [
        one
        for one in problems
        if one.startswith(f"task.name (={task}) needs a dataset of {needs}, the one at")
    ]


@pytest.mark.parametrize(
    ("task", "data", "classes"),
    [("classification", digits, 10), ("mask_rcnn", rectangles, 3), ("semantic_fpn", stripes, 3)],
)
def test_heads_of_another_number_of_classes(tmp_path: Path, task: str, data: Any, classes: int) -> None:
    fields = {"name": task} | ({} if task == "classification" else {"pyramid_channels": 16})
    wrong = job("convmlp_tiny", 64, 4, data(), task=fields, model={"num_classes": 7}, data={"num_streams": 1})
    problems = problems_of(wrong, tmp_path)
    told = [
        one
        for one in problems
        if one.startswith(f"model.num_classes (=7): the dataset at {data()} has {classes}")
    ]
    assert len(told) == 1
