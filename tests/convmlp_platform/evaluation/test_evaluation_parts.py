"""The parts of an evaluation that are functions: ReaL labels, counts, tables, plots, the result's file and folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from convmlp.model_cost import count_task_macs
from convmlp.tasks.heads import create_dense_model
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.load import dump_yaml, load_job
from convmlp_platform.errors import DataError
from convmlp_platform.evaluation.extra_figures import place_of, read_real_labels, real_accuracy, times
from convmlp_platform.evaluation.findings import count_pairs
from convmlp_platform.evaluation.report.plots import class_plot, confusion_plot
from convmlp_platform.evaluation.report.result_folder import staging
from convmlp_platform.evaluation.report.table import console_lines, markdown
from convmlp_platform.evaluation.result import RESULT_NAME, ClassScore, EvaluationResult, read_result

VALUES: dict[str, Any] = {
    "name": "x",
    "task": "classification",
    "model": {
        "given": "models:/m@champion",
        "pinned": "models:/m/3",
        "kind": "registry",
        "name": "convmlp_s",
        "parameters": 9_022_600,
        "macs": 2_398_000_000,
        "macs_size": [224, 224],
        "image_size": 224,
        "num_classes": 10,
    },
    "dataset": {
        "name": "d",
        "digest": "sha256:" + "0" * 64,
        "split": "val",
        "images": 12,
        "format": "ffcv",
        "path": "/d",
    },
    "metrics": {"top1": 76.8, "real_top1": 83.1, "real_images": 11.0, "loss": 0.9},
    "per_class": [{"name": "a|b", "count": 7, "scores": {"accuracy": None}}],
    "settings": {"precision": "bf16"},
    "hardware": {"device": "cpu", "name": "a processor", "threads": 1, "host": "h"},
    "seconds": 2.0,
    "date": "2026-11-21T10:00:00+00:00",
}


def result(**changed: Any) -> EvaluationResult:
    return EvaluationResult.model_validate(VALUES | changed)


def real_file(folder: Path, labels: Any) -> Path:
    path = folder / "real.json"
    path.write_text(json.dumps(labels))
    return path


def test_real_labels_count_any_of_an_images_labels_and_leave_out_images_without() -> None:
    labels = [[3, 4], [], [5], *[[1]] * 3]
    keys = [f"ILSVRC2012_val_{number:08d}" for number in (3, 1, 2, 4)]
    assert real_accuracy(labels, keys, np.array([5, 4, 7, 0])) == (2 / 3, 3)
    with pytest.raises(DataError, match="none of the images has a ReaL label"):
        real_accuracy(labels, keys[2:3], np.array([5]))


def test_the_published_file_is_read_and_nothing_else(tmp_path: Path) -> None:
    right = [[number % 1000] for number in range(49_999)] + [[]]
    assert read_real_labels(real_file(tmp_path, right)) == right
    for wrong, message in (
        (right[1:], "must hold a list of 50,000 lists, it is a list of 49,999"),
        ({"a": 1}, "it is a dict"),
        ([*right[1:], [1000]], r"entry 49999 \(\[1000\]\) must be a list of class numbers 0..999"),
        ([7, *right[1:]], r"entry 0 \(7\)"),
        ([[True], *right[1:]], r"entry 0 \(\[True\]\)"),
    ):
        with pytest.raises(DataError, match=message):
            read_real_labels(real_file(tmp_path, wrong))
    with pytest.raises(DataError, match=r"no file .*real\.json of github\.com"):
        read_real_labels(tmp_path / "absent")


def test_places_are_those_of_imagenets_numbers() -> None:
    assert place_of("ILSVRC2012_val_00000001") == 0
    assert place_of("n01440764/ILSVRC2012_val_00050000") == 49_999
    for key in ("ILSVRC2012_val_00000000", "ILSVRC2012_val_00050001", "0001"):
        with pytest.raises(DataError, match="no image of ImageNet's validation split"):
            place_of(key)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4))))
def test_pairs_are_counted(pairs: list[tuple[int, int]]) -> None:
    truth, said = np.array(pairs, np.int64).reshape(-1, 2).T
    counts = count_pairs(truth, said, 5)
    assert counts.sum() == len(pairs)
    assert all(counts[pair] == pairs.count(pair) for pair in pairs)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / RESULT_NAME).write_text(json.dumps(result().model_dump(mode="json")))
    assert read_result(tmp_path) == result()
    with pytest.raises(DataError, match="no evaluation's result is here"):
        read_result(tmp_path / "elsewhere")
    (tmp_path / RESULT_NAME).write_text('{"name": "x"}')
    with pytest.raises(DataError, match=r"result\.json: can't be read"):
        read_result(tmp_path)


def test_tables_tell_what_was_found() -> None:
    lines = "\n".join(console_lines(result()))
    for words in (
        "models:/m/3",
        "9.02 M",
        "2.40 G MACs at 224 x 224 px",
        "76.80 %",
        "11 images that have ReaL",
    ):
        assert words in lines
    text = markdown(result())
    assert "| ReaL top-1 | 83.10 % (of 11 images that have ReaL labels) |" in text
    assert r"| a\|b | 7 | - |" in text, "a class without images has no score"


def test_the_coco_table_has_all_twelve_figures_and_a_dash_where_there_is_none() -> None:
    names = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_medium", "ar_large")
    metrics = {f"{kind}_{name}": 41.7 for kind in ("box", "mask") for name in names} | {"loss": 1.0}
    found = result(metrics=metrics, task="mask_rcnn", per_class=[])
    rows = [line for line in console_lines(found) if line.strip().startswith("A")]
    assert len(rows) == 12 and rows[3].split() == ["AP", "small", "-", "-"]
    assert "| AP75 | 41.7 | 41.7 |" in markdown(found)


@pytest.mark.parametrize("number", [3, 60])
def test_plots_are_drawn_for_few_and_many_classes(number: int, tmp_path: Path) -> None:
    names = [f"class {place}" for place in range(number)]
    counts = np.eye(number, dtype=np.int64) * 9
    counts[0] = 0
    scores = [ClassScore(name=name, count=9, scores={"accuracy": 50.0}) for name in names]
    scores[0] = ClassScore(name="empty", count=0, scores={"accuracy": None})
    confusion = confusion_plot(counts, names, tmp_path / "a.png", title="t", unit="images")
    classes = class_plot(scores, "accuracy", tmp_path / "b.png", title="t", unit="images")
    assert confusion.read_bytes()[1:4] == classes.read_bytes()[1:4] == b"PNG"


def test_times_are_of_the_calls_after_the_warm_up() -> None:
    calls: list[int] = []
    assert len(times(lambda: calls.append(1), 3, 5)) == 5 and len(calls) == 8


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staging(tmp_path, "x") as folder:
        (folder / "half").write_text("a")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with staging(tmp_path, "x") as folder:
        (folder / RESULT_NAME).write_text(json.dumps(result().model_dump(mode="json")))
        assert not (tmp_path / "x").exists()
    assert read_result(tmp_path / "x") == result()


def test_an_earlier_result_that_was_never_sent_is_kept(tmp_path: Path) -> None:
    for number in range(3):
        with staging(tmp_path, "x") as folder:
            (folder / RESULT_NAME).write_text(
                json.dumps(result(seconds=float(number)).model_dump(mode="json"))
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "x",
        "x-20261121-100000",
        "x-20261121-100000-2",
    ]
    assert read_result(tmp_path / "x").seconds == 2.0


def test_detectors_cost_their_backbone_pyramid_and_heads() -> None:
    """Of RetinaNet's head alone: four and one 3 x 3 convolutions, twice, on every cell of five maps."""
    model = create_dense_model("retinanet", "convmlp_tiny", 3, pyramid_channels=16)
    cells = sum((64 // stride) ** 2 for stride in (8, 16, 32)) + 1 + 1
    head = cells * 9 * 16 * (2 * 4 * 16 + 9 * 3 + 9 * 4)
    backbone = count_task_macs(_Backbone(model.backbone), 64)
    assert count_task_macs(model, 64) == backbone + head
    masks = create_dense_model("mask_rcnn", "convmlp_tiny", 3, pyramid_channels=16)
    assert count_task_macs(masks, 64) > 1000 * (49 * 16 * 1024 + 1024 * 1024)


class _Backbone(torch.nn.Module):
    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> object:
        return self.body(images)


def job(**sections: Any) -> EvaluateJob:
    values: dict[str, Any] = {
        "kind": "evaluate",
        "name": "x",
        "model": {"from": "m.pth"},
        "data": {"path": "d"},
    }
    return EvaluateJob.model_validate(values | sections)


def test_the_models_source_is_named_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    file = tmp_path / "job.yaml"
    file.write_text(dump_yaml(job(evaluate={"real_labels": "real.json"})))
    assert "from: m.pth" in file.read_text()
    loaded = load_job(file, ["model.from=models:/m@champion"])
    assert isinstance(loaded, EvaluateJob) and loaded.model.source == "models:/m@champion"
    resolved = load_job(file).resolved()
    assert isinstance(resolved, EvaluateJob)
    places = (resolved.model.source, resolved.data.path, resolved.output.path, resolved.evaluate.real_labels)
    assert places == tuple(str(tmp_path / name) for name in ("m.pth", "d", "evaluations", "real.json"))


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"data\.mean and data\.std belong together"):
        job(data={"path": "d", "mean": [0.5, 0.5, 0.5]})
    with pytest.raises(ValidationError, match="fp16 needs a GPU"):
        job(evaluate={"precision": "fp16"}, launch={"use_gpu": False})
