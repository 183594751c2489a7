"""The first images of an evaluation, kept and drawn beside the truth; a picture never fails a run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotated import rectangles, stripes
from PIL import Image
from prepared import digits
from torch import Tensor

import convmlp
from convmlp_platform.data.dataset.sample_view import truth_of
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.pictures.predictions import DrawnObjects, is_wrong
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.training.outputs.sample_pictures import (
    FirstOutputs,
    SamplePictures,
    beside_truth,
    draw_first,
    plain,
)
from convmlp_platform.training.step_plan import TrainState


def split_of(folder: Path, name: str = "train") -> ShardedSplit:
    return ShardedSplit(folder, open_manifest(str(folder)), name, "webdataset")


class Counting:
    """Metrics that count."""

    def __init__(self) -> None:
        self.images = 0

    def update(self, outputs: Any, targets: Any) -> None:
        self.images += len(outputs)

    def compute(self) -> dict[str, float]:
        return {"top1": 0.5}

    def reset(self) -> None:
        self.images = 0

    def to(self, device: torch.device) -> Counting:
        return self


class Recorder:
    """A tracker that remembers what it got."""

    def __init__(self) -> None:
        self.got: list[tuple[Path, str]] = []

    def log_artifact(self, path: Path, folder: str) -> None:
        self.got.append((path, folder))


def perfect(split: ShardedSplit, sample: int) -> Tensor | dict[str, Tensor]:
    """What a task that makes no error would give of a sample."""
    truth = truth_of(split, sample)
    if isinstance(truth, int):
        return 20 * torch.nn.functional.one_hot(torch.tensor(truth), split.manifest.num_classes).float()
    if isinstance(truth, DrawnObjects):
        assert truth.is_crowd is not None
        kept = np.flatnonzero(~truth.is_crowd & (truth.boxes[:, 2] > truth.boxes[:, 0]))
        found = truth.chosen(kept)
        masks = [torch.from_numpy(np.asarray(mask)).bool() for mask in found.masks]
        return {
            "boxes": torch.from_numpy(found.boxes).float(),
            "labels": torch.from_numpy(found.labels),
            "scores": torch.linspace(0.9, 0.5, len(kept)),
            "masks": torch.stack(masks) if masks else torch.zeros(0, 1, 1, dtype=torch.bool),
        }
    return torch.from_numpy(np.where(truth < 0, 0, truth).astype(np.uint8))


def test_the_first_outputs_are_kept_and_the_metrics_are_the_same() -> None:
    kept = FirstOutputs(Counting(), 5)
    assert kept.to(torch.device("cpu")) is kept
    for _ in range(2):
        kept.reset()
        for start in range(0, 12, 4):
            kept.update(torch.eye(12)[start : start + 4], torch.zeros(4))
    assert [int(np.argmax(one)) for one in kept.found if not isinstance(one, DrawnObjects)] == [0, 1, 2, 3, 4]
    assert kept.compute() == {"top1": 0.5}
    assert isinstance(kept.metrics, Counting)
    assert kept.metrics.images == 12


def test_of_many_objects_the_best_are_kept_with_masks_where_they_are_drawn() -> None:
    scores = torch.linspace(0.0, 1.0, 100)
    found = plain(
        {
            "boxes": torch.rand(100, 4),
            "labels": torch.zeros(100).long(),
            "scores": scores,
            "masks": torch.ones(100, 6, 7) > 0,
        }
    )
    assert isinstance(found, DrawnObjects)
    assert found.scores is not None
    assert len(found.labels) == 40
    assert float(found.scores[0]) == 1.0
    assert sum(mask is not None for mask in found.masks) == 40
    few = plain(
        {"boxes": torch.rand(2, 4), "labels": torch.zeros(2).long(), "scores": torch.tensor([0.1, 0.9])}
    )
    assert isinstance(few, DrawnObjects)
    assert few.scores is not None
    assert few.scores.tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("dataset", [digits, rectangles, stripes])
def test_what_is_right_is_drawn_as_right(tmp_path: Path, dataset: Any) -> None:
    split = split_of(dataset())
    found = [plain(perfect(split, sample)) for sample in range(4)]
    for sample, one in enumerate(found):
        if dataset is not rectangles:  # an object without area is in the truth, too
            assert not is_wrong(beside_truth(split, sample, one))
    path = draw_first(split, found, tmp_path / "plots" / "p.png", title="t", subtitle="s")
    with Image.open(path) as picture:
        assert picture.width > 300


def test_a_run_s_picture_is_logged_and_never_fails_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split, folder, state = split_of(digits(), "val"), RunFolder(tmp_path, "x"), TrainState(step=7)
    recorder: Any = Recorder()
    pictures = SamplePictures("a-run", split, folder, recorder)
    metrics = pictures.watching(Counting())
    pictures.on_end(state)  # no evaluation yet
    metrics.update(torch.randn(20, 10), torch.zeros(20))
    pictures.on_evaluation({}, state)
    pictures.on_stop("SIGTERM", state)
    assert recorder.got == []
    pictures.on_end(state)
    assert recorder.got == [(tmp_path / "plots" / "predictions.png", "plots")]
    broken = SamplePictures("a-run", split, RunFolder(tmp_path / "run.json", "x"), recorder)
    (tmp_path / "run.json").write_text("")
    broken.watching(Counting()).update(torch.randn(3, 10), torch.zeros(3))
    broken.on_evaluation({}, state)
    with caplog.at_level(logging.WARNING):
        broken.on_end(state)
    assert "no picture of predictions" in caplog.text
    assert len(recorder.got) == 1


def test_other_ranks_keep_nothing(tmp_path: Path) -> None:
    pictures = SamplePictures("a-run", split_of(digits(), "val"), RunFolder(tmp_path, "x"), None)
    metrics = Counting()
    assert pictures.watching(metrics) is metrics
    pictures.on_end(TrainState())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The class that each drawn image was given, and the picture's subtitle."""
    seen: list[tuple[int, str]] = []

    def draw(split: Any, found: Any, path: Path, *, title: str, subtitle: str) -> Path:
        seen.extend((int(np.argmax(one)), subtitle) for one in found)
        return path

    monkeypatch.setattr("convmlp_platform.training.outputs.sample_pictures.draw_first", draw)
    return seen


def evaluated(pictures: SamplePictures, metrics: Any, says: int, state: TrainState, score: float) -> None:
    """An evaluation of three images, all of which are given the same class; the best one so far is in `state`."""
    metrics.reset()
    metrics.update(torch.eye(10)[[says] * 3], torch.zeros(3))
    state.metrics = {"eval/top1": score}
    if score > state.best.get("eval/top1", 0.0):
        state.best = state.metrics
    state.step += 1
    pictures.on_evaluation(state.metrics, state)


def test_the_best_evaluation_is_drawn_not_the_last(tmp_path: Path, drawn: list[tuple[int, str]]) -> None:
    recorder: Any = Recorder()
    pictures = SamplePictures("a-run", split_of(digits(), "val"), RunFolder(tmp_path, "x"), recorder)
    metrics, state = pictures.watching(Counting()), TrainState()
    for says, score in ((1, 50.0), (2, 90.0), (3, 70.0)):
        evaluated(pictures, metrics, says, state, score)
    pictures.on_evaluation(state.best, state)  # told again, as after a restart: it has no outputs
    evaluated(pictures, metrics, 4, state, 60.0)
    pictures.on_end(state)
    assert [label for label, _ in drawn] == [2] * 3
    assert drawn[0][1].endswith("the best model, of step 2")


def test_where_another_process_made_the_best_evaluation_its_model_is_asked(
    tmp_path: Path, drawn: list[tuple[int, str]]
) -> None:
    """The bundle's weights say class 6 of everything."""
    model = convmlp.create_model("convmlp_tiny", 10)
    weights = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    bias = next(name for name in reversed(weights) if name.endswith("bias") and len(weights[name]) == 10)
    weights[bias][6] = 5.0
    spec = BundleSpec(
        model="convmlp_tiny", num_classes=10, classes=tuple("0123456789"), image_size=32, mean=(0.5,) * 3,
        std=(0.2,) * 3, provenance={"step": 40},
    )  # fmt: skip
    write_bundle(tmp_path / "best", weights, spec)
    recorder: Any = Recorder()
    pictures = SamplePictures("a-run", split_of(digits(), "val"), RunFolder(tmp_path, "x"), recorder)
    metrics, state = pictures.watching(Counting()), TrainState(step=50, best={"eval/top1": 90.0})
    evaluated(pictures, metrics, 1, state, 60.0)
    pictures.on_end(state)
    assert {label for label, _ in drawn} == {6} and len(drawn) == 16
    assert drawn[0][1].endswith("the best model, of step 40")


@pytest.mark.parametrize(("average", "plain", "shown"), [(90.0, 50.0, 1), (50.0, 90.0, 2)])
def test_of_two_judgements_the_one_that_was_taken_is_drawn(
    tmp_path: Path, drawn: list[tuple[int, str]], average: float, plain: float, shown: int
) -> None:
    """The average is judged first, and says class 1 of all images; the plain weights say 2."""
    recorder: Any = Recorder()
    pictures = SamplePictures("a-run", split_of(digits(), "val"), RunFolder(tmp_path, "x"), recorder)
    metrics = pictures.watching(Counting())
    for says in (1, 2):
        metrics.reset()
        metrics.update(torch.eye(10)[[says] * 3], torch.zeros(3))
    figures = {"eval/top1": 90.0, "eval_average/top1": average, "eval_plain/top1": plain}
    pictures.on_evaluation(figures, TrainState(step=7))
    pictures.on_end(TrainState(step=7))
    assert [label for label, _ in drawn] == [shown] * 3
