"""Which model is evaluated on which images: what fits together, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from annotated import stripes
from prepared import digits
from safetensors.torch import save_file

import convmlp
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.evaluation.build_subject import build_loaded_task, prepared
from convmlp_platform.evaluation.evaluation_preflight import preflight_evaluation
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.models.task_spec import ClassificationSpec, PermutationSpec

DIGITS = tuple("0123456789")
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def network(num_classes: int = 10) -> torch.nn.Module:
    torch.manual_seed(0)
    return convmlp.create_model("convmlp_tiny", num_classes, image_size=32)


def bundle(folder: Path, **changed: Any) -> Path:
    classes = changed.get("classes", DIGITS)
    values: dict[str, Any] = {
        "model": "convmlp_tiny",
        "num_classes": len(classes),
        "classes": classes,
        "image_size": 32,
        "mean": MEAN,
        "std": STD,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    write_bundle(folder / "model", network(len(classes)).state_dict(), BundleSpec(**(values | changed)))
    return folder / "model"


def job(source: Path, folder: Path, **sections: Any) -> EvaluateJob:
    values: dict[str, Any] = {
        "kind": "evaluate",
        "name": "x",
        "model": {"from": str(source)},
        "data": {"path": str(digits()), "num_workers": 0},
        "output": {"path": str(folder / "evaluations")},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return EvaluateJob.model_validate(
        values | {name: values.get(name, {}) | given for name, given in sections.items()}
    )


def test_a_bundle_says_all_and_the_job_may_say_otherwise(tmp_path: Path) -> None:
    source = bundle(tmp_path)
    subject = prepared(job(source, tmp_path)).subject
    assert (subject.name, subject.image_size, subject.crop_pct, subject.interpolation) == (
        "convmlp_tiny",
        32,
        1.0,
        "bilinear",
    )
    assert (subject.mean, subject.std, subject.classes) == (MEAN, STD, DIGITS)
    given = {"image_size": 40, "crop_pct": 0.5, "mean": [0.5] * 3, "std": [0.5] * 3}
    parts = prepared(job(source, tmp_path, data=given))
    assert (parts.subject.image_size, parts.subject.crop_pct, parts.subject.mean) == (40, 0.5, (0.5,) * 3)
    assert (parts.training.data.image_size, parts.training.data.mean) == (40, (0.5,) * 3)


def test_its_weights_are_loaded_and_none_are_left_out(tmp_path: Path) -> None:
    wanted = job(bundle(tmp_path), tmp_path)
    task = build_loaded_task(wanted, prepared(wanted), print)
    own = network().state_dict()
    assert all(torch.equal(value, own[name]) for name, value in task.model.state_dict().items())
    other = job(bundle(tmp_path, options={"conv_blocks": 2}), tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"its weights don't fit convmlp_tiny for classification: .*: missing: conv_stages",
    ):
        build_loaded_task(other, prepared(other), print)


def test_a_bare_file_needs_the_networks_name_and_gets_published_pixels(tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    save_file(network().state_dict(), file)
    with pytest.raises(
        ConfigError, match=r"model\.name: .* is a file of weights, which doesn't say of which network"
    ):
        prepared(job(file, tmp_path))
    wanted = job(file, tmp_path, model={"name": "convmlp_tiny"})
    parts = prepared(wanted)
    assert parts.subject.classes is None and parts.subject.mean == pytest.approx((0.485, 0.456, 0.406))
    assert parts.subject.image_size == 32
    build_loaded_task(wanted, parts, print)
    save_file(network(7).state_dict(), file)
    with pytest.raises(ConfigError, match=r"the head in the file \(head\..* has another number of classes"):
        build_loaded_task(wanted, parts, print)


@pytest.mark.parametrize(
    ("changed", "sections", "message"),
    [
        ({"classes": tuple("abc")}, {}, "the model has 3 classes, dataset digits at data.path .* has 10"),
        (
            {"classes": ("1", "0", *DIGITS[2:])},
            {},
            r"class 0 of the model is '1', of dataset digits it is '0' \(and 1 more differ\)",
        ),
        ({}, {"model": {"name": "convmlp_s"}}, "model.name: the model at model.from .* says that already"),
        ({}, {"task": {"name": "retinanet"}}, "is a model for classification: leave task out"),
        (
            {},
            {"data": {"path": "STRIPES", "split": "train"}},
            "a model for classification needs a dataset of",
        ),
        ({}, {"data": {"digest": "sha256:" + "0" * 64}}, "data.digest: the dataset"),
        ({}, {"data": {"split": "test"}}, "data.split: .* has no split 'test'; it has train, val"),
        ({}, {"evaluate": {"real_labels": "x"}}, "ReaL labels are for ImageNet's 1,000 classes"),
        (
            {},
            {"evaluate": {"permutation": {"kinds": ["patches"], "patch_size": 5}}},
            r"evaluate.permutation.patch_size \(=5\): images of 32x32 px are not made of whole patches",
        ),
        ({"model": "nonesuch"}, {}, r"model.name \(=nonesuch\): no model is named"),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(
    changed: dict[str, Any], sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    import re

    for section in sections.values():
        if section.get("path") == "STRIPES":
            section["path"] = str(stripes())
    source = tmp_path / "model"
    known = changed.pop("model", None)
    bundle(tmp_path, **changed)
    if known:
        text = (source / "bundle.json").read_text().replace("convmlp_tiny", known)
        (source / "bundle.json").write_text(text)
    report = preflight_evaluation(job(source, tmp_path, **sections))
    assert any(re.search(message, problem) for problem in report.problems), report.problems
    assert len(report.problems) == 1, report.problems


def test_a_check_sees_all_problems_at_once(tmp_path: Path) -> None:
    wanted = job(tmp_path / "absent", tmp_path, data={"split": "x"}, tracking={"uri": "file:///mlruns"})
    problems = preflight_evaluation(wanted).problems
    assert len(problems) == 3 and "data.split" in problems[0] and "model.from" in problems[1]
    assert "MLflow" in problems[2]


def test_a_model_trained_on_permuted_pixels_gets_them_so(tmp_path: Path) -> None:
    permutation = PermutationSpec(kind="patches", patch_size=8, seed=5)
    source = bundle(tmp_path, task=ClassificationSpec(permutation=permutation))
    augment = prepared(job(source, tmp_path)).training.augment
    assert (augment.permute, augment.permute_patch, augment.permute_seed) == ("patches", 8, 5)
