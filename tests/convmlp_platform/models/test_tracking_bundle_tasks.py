"""Bundles of every task: rebuilt from their folder alone, and predicting what the task's evaluation does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tiny_dense import DATASETS, TinyDense, tiny_dense
from torch import Tensor

import convmlp
from convmlp.transforms.image_transforms import eval_transform
from convmlp.transforms.pixel_order import permute_pixels, pixel_order
from convmlp_platform.config.sections.task_section import BEST_METRICS
from convmlp_platform.distributed import joined_world
from convmlp_platform.errors import TrackingError
from convmlp_platform.models.bundle import BundleSpec, load_bundle, read_spec, write_bundle
from convmlp_platform.models.prediction import Detections, LabelMap
from convmlp_platform.models.predictors.classifier import Classifier
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.models.task_spec import ClassificationSpec, DetectionSpec, PermutationSpec
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.training.build import parts

DETECTION = DetectionSpec(
    name="retinanet", pyramid_channels=16, max_side=64, anchor_scale=4.0, class_ids=(3, 17, 90)
)
SPEC = BundleSpec(
    model="convmlp_tiny",
    num_classes=3,
    classes=("cat", "dog", "owl"),
    image_size=32,
    mean=(0.5, 0.4, 0.3),
    std=(0.25, 0.25, 0.2),
)


def evaluated(tiny: TinyDense, folder: Path, images: int) -> list[Any]:
    """What the task's evaluation makes of the first held-out images, through the job's own loader and engine."""
    outputs = []
    with joined_world(use_gpu=False) as world:
        engine = parts.build_engine(tiny.job, tiny.task, tiny.manifest, world)
        loader = parts.build_eval_loader(tiny.job, tiny.manifest, RunFolder(folder, ""), world)
        for batch, _ in zip(loader, range(images), strict=False):
            outputs += engine.eval_step(batch)[1]
    return outputs


@pytest.mark.parametrize("kind", DATASETS)
def test_predictions_are_those_of_the_evaluation(kind: str, tmp_path: Path) -> None:
    tiny, count = tiny_dense(kind), 1 if kind == "mask_rcnn" else 3
    wanted = evaluated(tiny, tmp_path, count)
    images = [tiny.split.image(at)[0] for at in range(count)]
    found = Predictor.from_folder(tiny.bundle).predict(images)
    for image, one, own in zip(images, found, wanted, strict=True):
        assert isinstance(one, (Detections, LabelMap)) and one.size == (image.height, image.width)
        if isinstance(one, LabelMap):
            assert np.array_equal(one.labels, own.numpy()) and one.labels.dtype == np.uint8
            continue
        assert len(one) > 3
        assert torch.equal(one.labels, own["labels"])
        torch.testing.assert_close(one.boxes, own["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(one.scores, own["scores"], atol=1e-5, rtol=0)
        if kind == "mask_rcnn":
            assert one.masks is not None and one.masks.shape == (len(one), *one.size)
            assert torch.equal(one.masks, own["masks"])


@pytest.mark.parametrize("kind", DATASETS)
def test_the_folder_alone_gives_back_the_model(kind: str) -> None:
    tiny = tiny_dense(kind)
    model, spec = load_bundle(tiny.bundle)
    assert spec == tiny.spec and not model.training
    assert spec.schema_version == 2 and spec.task.name == kind
    own = tiny.task.model.state_dict()
    assert model.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert spec.task.best_metric == tiny.task.best_metric == BEST_METRICS[kind]


def test_anchors_are_part_of_a_detector(tmp_path: Path) -> None:
    tiny = tiny_dense("retinanet")
    assert isinstance(tiny.spec.task, DetectionSpec)
    assert tiny.spec.task.anchor_scale == 4.0 and tiny.spec.task.class_ids == (3, 17, 90)
    task = tiny.spec.task.model_copy(update={"anchor_scale": 1.0})
    write_bundle(tmp_path, tiny.task.model.state_dict(), tiny.spec.model_copy(update={"task": task}))
    found, other = (
        Predictor.from_folder(folder).predict([tiny.split.image(0)[0]])[0]
        for folder in (tiny.bundle, tmp_path)
    )
    assert isinstance(found, Detections) and isinstance(other, Detections)
    assert not torch.equal(found.boxes, other.boxes)


def test_bundles_of_version_1_still_load(tmp_path: Path) -> None:
    model = convmlp.create_model("convmlp_tiny", num_classes=3)
    write_bundle(tmp_path, model.state_dict(), SPEC)
    written: dict[str, Any] = json.loads((tmp_path / "bundle.json").read_text())
    assert written.pop("task") == {"name": "classification", "permutation": None}
    (tmp_path / "bundle.json").write_text(json.dumps(written | {"schema_version": 1}))
    spec = read_spec(tmp_path)
    assert (spec.schema_version, spec.task) == (1, ClassificationSpec())
    assert isinstance(Predictor.from_folder(tmp_path), Classifier)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1, "task": DETECTION}, "task retinanet needs schema_version 2"),
        ({"schema_version": 3}, "schema_version"),
        ({"task": DETECTION.model_copy(update={"class_ids": (1, 2)})}, "2 class_ids for num_classes"),
        ({"task": {"name": "pose"}}, "pose"),
        ({"task": {"name": "semantic_fpn", "pyramid_channels": 8}}, "max_side"),
        ({"task": {"name": "classification", "pyramid_channels": 8}}, "pyramid_channels"),
    ],
)
def test_a_spec_says_all_of_its_task_and_nothing_else(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BundleSpec.model_validate(SPEC.model_dump() | change)


def test_weights_of_another_task_make_no_model(tmp_path: Path) -> None:
    write_bundle(tmp_path, tiny_dense("semantic_fpn").task.model.state_dict(), tiny_dense("retinanet").spec)
    with pytest.raises(TrackingError, match="make no model"):
        Predictor.from_folder(tmp_path)


def test_a_model_of_permuted_pixels_sees_permuted_pixels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = convmlp.create_model("convmlp_tiny", num_classes=3).eval()
    permutation = PermutationSpec(kind="patches", patch_size=8, seed=5)
    spec = SPEC.model_copy(update={"task": ClassificationSpec(permutation=permutation)})
    write_bundle(tmp_path, model.state_dict(), spec)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    prepared = eval_transform(32, mean=SPEC.mean, std=SPEC.std)(Image.fromarray(pixels))
    moved = permute_pixels(prepared, pixel_order("patches", 32, 32, patch_size=8, seed=5))
    (found,) = Classifier(*load_bundle(tmp_path)).predict([Image.fromarray(pixels)])
    wanted: Tensor = model(moved[None]).softmax(dim=1)[0].detach()
    torch.testing.assert_close(found.probabilities, wanted)
    assert not torch.allclose(found.probabilities, model(prepared[None]).softmax(dim=1)[0], atol=1e-6)
