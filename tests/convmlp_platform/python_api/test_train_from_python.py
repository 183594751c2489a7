"""`train`, `load_model` and `evaluate` in this process: what they give, and what Ctrl-C leaves behind."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prepared import few_digits
from tiny_dense import tiny_dense

import convmlp_platform as cp
from convmlp_platform.models.prediction import Detections, LabelMap, Labels
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.training.callbacks import Console

SHORT = {
    "training.steps": 8,
    "training.epochs": None,
    "data.image_size": 16,
    "data.num_workers": 0,
    "eval.every_steps": 4,
    "training.log_every_steps": 4,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> cp.TrainingSummary:
    """A short run in a folder of its own, which is the root for paths."""
    folder = tmp_path_factory.mktemp("run")
    return cp.train(out=folder / "runs/few", model="convmlp_tiny", data=few_digits(), settings=SHORT)


def test_the_summary_says_what_there_is(trained: cp.TrainingSummary) -> None:
    assert (trained.name, trained.steps, trained.registered) == ("few", 8, None)
    assert trained.bundle == trained.run / "best" and (trained.bundle / "bundle.json").is_file()
    assert trained.checkpoint == str(trained.run / "checkpoints/step-000000008")
    assert set(trained.best) == {"loss", "top1", "top5"} and 0 <= trained.metrics["top1"] <= 100
    with pytest.raises(AttributeError):
        trained.steps = 9  # type: ignore[misc]


def test_the_same_call_finds_the_run_complete_and_another_recipe_is_refused(
    trained: cp.TrainingSummary,
) -> None:
    given: dict[str, Any] = {
        "out": trained.run,
        "model": "convmlp_tiny",
        "data": cp.open_dataset(few_digits()),
    }
    assert cp.train(**given, settings=SHORT) == trained
    with pytest.raises(cp.ConfigError, match=r"another recipe:\n  optimizer\.lr"):
        cp.train(**given, settings=SHORT, optimizer={"lr": 0.5})


@pytest.mark.parametrize("what", ["run", "bundle", "checkpoint"])
def test_a_model_is_loaded_by_each_of_its_names(trained: cp.TrainingSummary, what: str) -> None:
    model = cp.load_model(
        getattr(trained, what), weights="raw" if what == "checkpoint" else "auto", device="cpu"
    )
    assert isinstance(model, torch.nn.Module) and not model.training
    assert model.classes == [str(number) for number in range(10)]
    dataset = cp.open_dataset(few_digits(), "val")
    images = [dataset.image(sample) for sample in range(5)]
    batch = torch.stack([model.transform(image) for image in images])
    assert batch.shape == (5, 3, 16, 16) and batch.dtype == torch.float32
    with torch.inference_mode():
        found = model(batch).softmax(1)
    for labels, wanted in zip(model.predict(images), found, strict=True):
        assert isinstance(labels, Labels)
        torch.testing.assert_close(labels.probabilities, wanted)


def test_a_checkpoint_is_read_without_the_best_model(trained: cp.TrainingSummary, tmp_path: Path) -> None:
    import shutil

    run = shutil.copytree(trained.run, tmp_path / "runs/copy")
    shutil.rmtree(run / "best")
    model = cp.load_model(run / "checkpoints/step-000000008", weights="raw", device="cpu")
    whole = cp.load_model(str(trained.checkpoint), weights="raw", device="cpu")
    assert model.spec == whole.spec.model_copy(update={"provenance": {}})
    for one, other in zip(model.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_images_may_come_in_any_form(trained: cp.TrainingSummary, tmp_path: Path) -> None:
    model = cp.load_model(trained.run, device="cpu")
    pixels, _ = cp.open_dataset(few_digits(), "val")[0]
    Image.fromarray(pixels).save(tmp_path / "one.png")
    forms: list[Any] = [
        Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1), tmp_path / "one.png",
        str(tmp_path / "one.png"), (tmp_path / "one.png").read_bytes(),
    ]  # fmt: skip
    first = model.transform(forms[0])
    assert all(torch.equal(model.transform(form), first) for form in forms)
    assert len({tuple(one.probabilities.tolist()) for one in model.predict(forms)}) == 1  # type: ignore[union-attr]
    assert torch.equal(pickle.loads(pickle.dumps(model.transform))(forms[0]), first)
    with pytest.raises(cp.DataError, match=r"uint8 \[H, W, 3\].* this is float64 \[4, 4\]"):
        model.predict([np.zeros((4, 4))])  # type: ignore[list-item]
    with pytest.raises(cp.DataError, match=r"gone\.png: no such image file"):
        model.transform("gone.png")
    with pytest.raises(TypeError, match="a list of images"):
        model.predict("one.png")  # type: ignore[arg-type]
    assert "convmlp_tiny for classification, 10 classes, 16 px" in repr(model)


@pytest.mark.parametrize("kind", ["retinanet", "semantic_fpn"])
def test_detectors_and_segmenters_see_and_say_what_convmlp_predict_has_them(kind: str) -> None:
    tiny = tiny_dense(kind)
    model, predictor = cp.load_model(tiny.bundle, device="cpu"), Predictor.from_folder(tiny.bundle)
    image = tiny.split.image(0)[0]
    assert torch.equal(model.transform(image), predictor.see(image, 0).pixels.cpu())
    (found,), (wanted,) = model.predict([np.asarray(image)]), predictor.predict([image])
    if isinstance(wanted, Detections):
        assert isinstance(found, Detections) and len(found) == len(wanted) > 3
        torch.testing.assert_close(found.boxes, wanted.boxes)
    else:
        assert isinstance(found, LabelMap) and np.array_equal(found.labels, wanted.labels)


def test_what_is_only_weights_is_refused(trained: cp.TrainingSummary) -> None:
    assert trained.bundle is not None
    with pytest.raises(cp.ConfigError, match=r"only weights are there \(a file\)"):
        cp.load_model(trained.bundle / "model.safetensors")
    with pytest.raises(cp.ConfigError, match="there is no such file or folder"):
        cp.load_model(trained.run.parent / "gone")


def test_ctrl_c_saves_and_the_same_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {
        "out": tmp_path / "few",
        "model": "convmlp_tiny",
        "data": few_digits(),
        "settings": SHORT,
    }
    handler, told = signal.getsignal(signal.SIGINT), Console.on_log
    signalled: list[None] = []

    def interrupted(console: Console, metrics: dict[str, float], state: Any) -> None:
        told(console, metrics, state)
        if not signalled:  # a second one doesn't wait for the save
            signalled.append(os.kill(os.getpid(), signal.SIGINT))

    with monkeypatch.context() as patch:
        patch.setattr(Console, "on_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cp.train(**given)
    assert "stopped by SIGINT after step" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    assert list((tmp_path / "few/checkpoints").glob("step-*"))
    assert cp.train(**given).steps == 8
    assert "goes on after step" in capsys.readouterr().out
