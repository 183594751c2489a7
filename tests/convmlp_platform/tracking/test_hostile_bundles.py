"""Bundles made to harm: nothing is fetched, read or made that they name; what can't be an answer is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hostile import outcomes
from safetensors.torch import load_file, save_file
from tiny_dense import DATASETS, tiny_dense

import convmlp
from convmlp_platform.config.explain.suggest import nearest
from convmlp_platform.config.load import load_job
from convmlp_platform.config.sections.model_options import check_options
from convmlp_platform.errors import ConfigError, DataError, TrackingError
from convmlp_platform.models.bundle import SPEC_NAME, WEIGHTS_NAME, BundleSpec, load_bundle, write_bundle
from convmlp_platform.models.predictors.predictor import Predictor, predictor_of

SPEC = BundleSpec(
    model="convmlp_tiny",
    num_classes=3,
    classes=("cat", "dog", "owl"),
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
URL = "http://127.0.0.1:9/weights.pth"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "good"
    write_bundle(folder, convmlp.create_model("convmlp_tiny", num_classes=3).state_dict(), SPEC)
    return folder


def changed(good: Path, folder: Path, **fields: Any) -> Path:
    shutil.copytree(good, folder)
    spec = json.loads((good / SPEC_NAME).read_text()) | fields
    (folder / SPEC_NAME).write_text(json.dumps(spec))
    return folder


OPTIONS = {
    "pretrained": True,
    "pretrained_cfg": {"url": URL},
    "pretrained_cfg_overlay": {"url": URL},
    "pretrained_strict": False,
    "pretrained_path": "/etc/passwd",
    "weights": "/etc/passwd",
    "checkpoint_path": "/etc/passwd",
    "cache_dir": "/tmp/elsewhere",
    "scriptable": True,
    "features_only": True,
    "out_indices": [0],
    "in_chans": 1,
    "num_classes": 9,
    "name": "resnet18",
    "model_cls": "os.system",
    "kwargs_filter": ["a"],
    "block_fn": "x",
    "__class__": "x",
    "stem_strid": 2,
    "stem_stride": "a b",
    "act_layer": "/etc/passwd",
    "drop_rate": float("inf"),
    "dims": [10**9, 10**9, 10**9],
    "depth": 10**30,
    "blocks": [1] * 65,
    "mlp_ratios": [[[[1]]]],
    "gelu": {"a": 1},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_only_what_an_architecture_is_made_of(good: Path, tmp_path: Path, option: str) -> None:
    folder = changed(good, tmp_path / "bad", options={option: OPTIONS[option]})
    with pytest.raises(TrackingError, match=rf"bundle\.json: can't be read: options: .*{option}") as raised:
        load_bundle(folder)
    assert len(str(raised.value)) < 500 + len(str(folder))
    if option == "drop_rate":
        return  # YAML has no such number but .inf
    job = tmp_path / "job.yaml"
    job.write_text(
        f"kind: train\nname: x\nmodel: {json.dumps({'name': 'resnet18', 'options': {option: OPTIONS[option]}})}\n"
        "data: {path: d}\noptimizer: {lr: 1e-5}\n"
        "training: {epochs: 5, global_batch_size: 64, micro_batch_size: 32}\n"
    )
    with pytest.raises(ConfigError, match=rf"job\.yaml:\d* ?.*({option}|is too large)"):
        load_job(job)


def test_options_of_published_recipes_pass() -> None:
    for options in ({"stem_stride": 2}, {"gelu": "tanh"}, {"patch_size": 4}, {"dims": (64, 128, 256)}, {}):
        assert check_options(options) == options
    assert nearest("stem_strid", ["stem_stride"]) == "stem_stride"


FIELDS: dict[str, dict[str, Any]] = {
    "std of zero": {"std": [0.25, 0.0, 0.25]},
    "std that is too small": {"std": [1e-300, 1, 1]},
    "negative std": {"std": [-1, 1, 1]},
    "std of NaN": {"std": [float("nan"), 1, 1]},
    "mean of infinity": {"mean": [float("inf"), 0, 0]},
    "large mean": {"mean": [1e300, 0, 0]},
    "two means": {"mean": [0, 0]},
    "image size": {"image_size": 10**9},
    "no image size": {"image_size": 0},
    "classes without names": {"num_classes": 10**9},
    "negative classes": {"num_classes": -1},
    "classes": {"num_classes": 2},
    "model's name": {"model": "x" * 10_000},
    "a path as name": {"model": "../../etc/passwd"},
    "a hub's model": {"model": "hf-hub:timm/resnet18"},
    "a folder's model": {"model": "local-dir:/etc"},
    "a task's side": {"task": {"name": "semantic_fpn", "pyramid_channels": 64, "max_side": 10**9}},
    "a task's channels": {"task": {"name": "semantic_fpn", "pyramid_channels": 10**9, "max_side": 64}},
    "a permutation": {"task": {"name": "classification", "permutation": {"kind": "x", "patch_size": 10**9, "seed": 0}}},
}  # fmt: skip


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_fields_out_of_bounds(good: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = changed(good, tmp_path / "bad", **fields)
    with pytest.raises(TrackingError) as raised:
        load_bundle(folder)
    assert str(raised.value).startswith(str(folder)) and len(str(raised.value)) < 700 + len(str(folder))


@pytest.mark.slow
def test_bundles_that_describe_more_than_they_hold(good: Path, tmp_path: Path) -> None:
    described = {
        "wide": {"options": {"dims": [8192] * 3, "mlp_ratios": [8192.0] * 3}},
        "deep and narrow": {
            "model": "mixer_s16",
            "options": {"num_blocks": 8192, "embed_dim": 1, "patch_size": 16},
        },
        "large images": {"model": "mixer_s16", "options": {"patch_size": 1}, "image_size": 4096},
        "many classes": {
            "num_classes": 200_000,
            "classes": [str(n) for n in range(200_000)],
            "model": "mixer_b16",
        },
    }
    files = {label: changed(good, tmp_path / label, **fields) for label, fields in described.items()}
    files["a long file"] = changed(good, tmp_path / "long")
    with (files["a long file"] / SPEC_NAME).open("ab") as file:
        file.truncate(1 << 34)
    files["deep JSON"] = changed(good, tmp_path / "nested")
    (files["deep JSON"] / SPEC_NAME).write_text('{"provenance": ' + '{"a": ' * 500_000)
    files["weights of another length"] = changed(good, tmp_path / "weights")
    (files["weights of another length"] / WEIGHTS_NAME).write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    found = outcomes(
        files,
        "from convmlp_platform.errors import TrackingError\nfrom convmlp_platform.models.bundle import load_bundle",
        "load_bundle(path)",
        "TrackingError",
        memory=12 << 30,
        seconds=60,
    )
    assert list(found) == list(files)
    assert all(message.startswith(str(files[label])) for label, message in found.items()), found


def test_answers_that_are_not_finite(good: Path, tmp_path: Path, png: bytes) -> None:
    weights = load_file(good / WEIGHTS_NAME)
    name = next(name for name in weights if name.endswith("head.weight"))
    for value in (float("nan"), float("inf")):
        folder = changed(good, tmp_path / str(value))
        save_file(weights | {name: torch.full_like(weights[name], value)}, folder / WEIGHTS_NAME)
        with pytest.raises(TrackingError, match=r"head\.weight holds values that are not finite"):
            load_bundle(folder)
    folder = changed(good, tmp_path / "large")
    save_file(
        {key: value * 1e30 if value.is_floating_point() else value for key, value in weights.items()},
        folder / WEIGHTS_NAME,
    )
    with pytest.raises(DataError, match="the model's answer is not finite"):
        Predictor.from_folder(folder).predict([png])


@pytest.mark.parametrize("task", DATASETS)
def test_maps_that_are_not_finite_are_no_empty_answer(task: str, png: bytes) -> None:
    model, spec = load_bundle(tiny_dense(task).bundle)
    with torch.no_grad():
        next(model.get_submodule("backbone").parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="the model's answer is not finite"):
        predictor_of(model, spec).predict([png])


def test_no_network_of_timm_is_reached_by_another_name() -> None:
    for name in ("hf-hub:timm/resnet18", "local-dir:/tmp", "hf_hub:resnet18", "../resnet18"):
        assert not timm.is_model(name)
        with pytest.raises(ValueError, match="no model is named"):
            convmlp.create_model(name)
