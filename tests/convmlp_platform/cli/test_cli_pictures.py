"""`convmlp pictures ...`: a model's predictions and feature maps as PNG files, and one clear line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from annotated import CLASS_IDS, rectangles, stripes
from PIL import Image
from prepared import digits

from convmlp.tasks.heads import create_dense_model
from convmlp.zoo import create_model
from convmlp_platform.cli.main import main
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.models.task_spec import ClassificationSpec, DetectionSpec, SegmentationSpec, TaskSpec
from convmlp_platform.training.run import run

HALF = (0.5, 0.5, 0.5)
SPECS: dict[str, TaskSpec] = {
    "digits": ClassificationSpec(),
    "rectangles": DetectionSpec(
        name="mask_rcnn", pyramid_channels=16, max_side=96, anchor_scale=4.0, class_ids=tuple(CLASS_IDS)
    ),
    "stripes": SegmentationSpec(pyramid_channels=16, max_side=128),
}
DATA = {"digits": digits, "rectangles": rectangles, "stripes": stripes}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CONVMLP_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def bundle(kind: str, folder: Path = Path("model")) -> str:
    """Fresh weights for the classes of a dataset."""
    manifest, spec = open_manifest(str(DATA[kind]())), SPECS[kind]
    torch.manual_seed(0)
    if isinstance(spec, ClassificationSpec):
        model: torch.nn.Module = create_model("convmlp_tiny", num_classes=manifest.num_classes)
    else:
        model = create_dense_model(spec.name, "convmlp_tiny", manifest.num_classes, pyramid_channels=16)
    described = BundleSpec(
        model="convmlp_tiny",
        task=spec,
        num_classes=manifest.num_classes,
        classes=tuple(manifest.classes),
        image_size=32 if kind == "digits" else 64,
        mean=HALF,
        std=HALF,
    )
    write_bundle(folder, model.state_dict(), described)
    return str(folder)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "digits" else pytest.mark.slow) for kind in sorted(SPECS)]
)
def test_predictions_of_every_task(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = bundle(kind), str(DATA[kind]())
    assert (
        main(["pictures", "predictions", model, data, "--split", "train", "--count", "3", "--out", "a/p.png"])
        == 0
    )
    assert capsys.readouterr().out.startswith("a/p.png: 3 images, ")
    with Image.open("a/p.png") as picture:
        assert min(picture.size) > 200


def test_only_wrong_ones(capsys: pytest.CaptureFixture[str]) -> None:
    model, data = bundle("digits"), str(digits())
    assert (
        main(["pictures", "predictions", model, data, "--only-wrong", "--count", "4", "--out", "p.png"]) == 0
    )
    assert "4 images, out of" in (said := capsys.readouterr().out) or "4 images, 4" in said
    assert main(["pictures", "predictions", bundle("stripes"), str(stripes()), "--split", "train", "--only-wrong",
                 "--count", "2", "--out", "s.png"]) == 0  # fmt: skip
    assert "2 images, out of 6 looked at, 2 of them with an error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predictions", "{model}", "{data}", "--out", "p.jpg"], "--out: p.jpg must end with .png"),
        (["predictions", "{model}", "{stripes}", "--out", "p.png"], "is a model for classification, dataset data"),
        (["predictions", "nowhere", "{data}", "--out", "p.png"], "nowhere: there is no such file or folder"),
        (["predictions", "{model}", "{data}", "--split", "x", "--out", "p.png"], "has no split 'x'; it has"),
        (["features", "convmlp_tiny", "--image", "none.png", "--out", "p.png"], "none.png: no such image file"),
        (["features", "convmpl", "--data", "{data}", "--out", "p.png"], "convmpl: there is no such file or folder"),
        (["features", "mixer_s16", "--data", "{data}", "--size", "20", "--out", "p.png"], "multiple of the patch"),
        (["features", "convmlp_tiny", "--data", "{data}", "--out", "{model}/bundle.json/p.png"], "--out: can't write"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"model": bundle("digits"), "data": str(digits()), "stripes": str(stripes())}
    assert main(["pictures", *(word.format(**known) for word in words)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert "Traceback" not in told


def test_classes_of_other_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    spec = Path(bundle("digits")) / "bundle.json"
    spec.write_text(spec.read_text().replace('"3"', '"three"'))
    assert main(["pictures", "predictions", "model", str(digits()), "--out", "p.png"]) == 2
    assert "class 3 of the model is 'three', of the dataset '3'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_in_its_run_s_folder_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "kind": "train",
        "name": "tiny",
        "model": {"name": "convmlp_tiny"},
        "data": {"path": str(digits()), "image_size": 32, "num_workers": 0},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 1, "max_steps": 1, "global_batch_size": 8, "micro_batch_size": 8},
        "eval": {"batch_size": 128},
        "checkpoint": {"path": "runs"},
        "tracking": {"uri": f"sqlite:///{Path.cwd()}/mlflow.db"},
        "launch": {"use_gpu": False},
    }
    result = run(TrainJob.model_validate(values))
    assert result.checkpoint is not None
    words = [result.checkpoint, str(digits()), "--count", "2", "--out", "p.png"]
    assert main(["pictures", "predictions", *words]) == 0
    words = [result.checkpoint, "runs/tiny", "--data", str(digits()), "--count", "2", "--out", "f.png"]
    assert main(["pictures", "features", *words]) == 0
    assert capsys.readouterr().out.endswith("f.png: 2 models, 2 images\n")


def test_features_of_several_models_and_images(capsys: pytest.CaptureFixture[str]) -> None:
    model = bundle("rectangles")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save("i.png")
    models = [model, "convmlp_tiny", "convmlp_tiny=weights.safetensors", "mixer_s16"]
    from safetensors.torch import save_file

    save_file(create_model("convmlp_tiny", num_classes=4).state_dict(), "weights.safetensors")
    words = ["pictures", "features", *models, "--image", "i.png", "--size", "64", "--out", "f.png"]
    assert main([*words, "--show", "mean"]) == 0
    assert capsys.readouterr().out == "f.png: 4 models, 1 images\n"
    assert main(["pictures", "features", "weights.safetensors", "--image", "i.png", "--out", "f.png"]) == 2
    assert "write NAME=weights.safetensors, e.g. convmlp_s=" in capsys.readouterr().err
