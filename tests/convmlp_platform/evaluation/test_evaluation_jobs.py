"""Whole evaluation jobs as a user starts them: every task, both formats, MLflow there and away, on Ray."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from annotated import rectangles, stripes
from prepared import digits

from convmlp_platform.cli.main import main
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.evaluation.result import EvaluationResult, read_result
from convmlp_platform.tracking.finished_work import sent_to
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.training.run import run

pytestmark = pytest.mark.slow
DATASETS = {"retinanet": rectangles, "mask_rcnn": rectangles, "semantic_fpn": stripes}


def data_of(task: str) -> Path:
    return digits("webdataset", "ffcv") if task == "classification" else DATASETS[task]()


@cache
def trained(task: str, register: str | None = None, permute: str = "none") -> tuple[Path, dict[str, float]]:
    """A run's folder, and the metrics of its best evaluation."""
    folder = Path(mkdtemp(prefix="convmlp-test-"))
    small = task == "classification"
    values: dict[str, Any] = {
        "kind": "train",
        "name": "model",
        "task": {"name": task, "pyramid_channels": 16},
        "model": {"name": "convmlp_tiny"},
        "data": {"path": str(data_of(task)), "image_size": 32 if small else 64, "num_workers": 0},
        "augment": {"crop": "none", "hflip": 0.0, "permute": permute, "permute_patch": 8},
        "optimizer": {"lr": 2e-3},
        "training": {
            "epochs": 4 if small else 2,
            "global_batch_size": 60 if small else 6,
            "micro_batch_size": 60 if small else 6,
        },
        "checkpoint": {"path": str(folder / "runs")},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "launch": {"use_gpu": False},
    }
    if not small:
        values["data"]["eval_split"] = "train"
    if register:
        values["tracking"]["register_as"] = {"name": register, "automatic": True}
    return folder, run(TrainJob.model_validate(values)).best


def job_file(folder: Path, task: str, **sections: Any) -> Path:
    values: dict[str, Any] = {
        "kind": "evaluate",
        "name": "measured",
        "model": {"from": str(folder / "runs/model")},
        "data": {"path": str(data_of(task)), "num_workers": 0},
        "evaluate": {"batch_size": 4 if task != "classification" else 50},
        "output": {"path": str(folder / "evaluations")},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "experiment": "measured"},
        "launch": {"address": "local", "use_gpu": False},
    }
    if task != "classification":
        values["data"]["split"] = "train"
    for name, given in sections.items():
        values[name] = values.get(name, {}) | given if isinstance(given, dict) else given
    path = folder / "job.yaml"
    path.write_text(json.dumps(values))
    return path


def evaluated(folder: Path, task: str, *arguments: str, **sections: Any) -> EvaluationResult:
    assert main(["run", *(arguments or ("--no-ray",)), str(job_file(folder, task, **sections))]) == 0
    return read_result(folder / "evaluations/measured")


@pytest.mark.parametrize("task", ["classification", *DATASETS])
def test_a_run_is_measured_as_its_training_measured_it(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, best = trained(task)
    timed = {"throughput": {"batch_sizes": [1, 2], "warmup": 1, "batches": 2}}
    found = evaluated(folder, task, evaluate={"batch_size": 4, **timed})
    told = {name: value for name, value in best.items() if name != "eval/loss"}
    assert {f"eval/{name}": found.metrics[name] for name in _bare(told)} == pytest.approx(told, abs=1e-6)
    assert found.dataset.images == (359 if task == "classification" else 6)
    assert found.throughput is not None and [row.batch_size for row in found.throughput.rows] == [1, 2]
    assert found.model.parameters > 10_000 and (found.model.macs or 0) > 1_000_000
    for name in found.artifacts:
        assert (folder / "evaluations/measured" / name).stat().st_size > 0
    assert {"result.json", "table.md", "predictions.png"} <= set(found.artifacts)
    _check_classes(task, found, folder / "evaluations/measured")
    assert "images/s, batch 2" in capsys.readouterr().out

    other = evaluated(folder, task, data={"path": str(data_of(task)), "format": "ffcv"})
    assert other.metrics == pytest.approx(found.metrics, abs=1e-4)
    assert other.dataset.digest == found.dataset.digest and other.dataset.format == "ffcv"
    newest = sorted((folder / "runs/model/checkpoints").glob("step-*"))[-1]
    again = evaluated(folder, task, model={"from": str(newest)})
    assert again.model.kind == "checkpoint" and again.dataset.images == found.dataset.images


def _bare(told: dict[str, float]) -> list[str]:
    return [name.removeprefix("eval/") for name in told]


def _check_classes(task: str, found: EvaluationResult, folder: Path) -> None:
    """What is said of the classes agrees with what is said of all."""
    if task in ("retinanet", "mask_rcnn"):
        aps = [one.scores["box_ap"] for one in found.per_class]
        known = [value for value in aps if value is not None]
        assert np.mean(known) == pytest.approx(found.metrics["box_ap"], abs=1e-6)
        assert sum(one.count for one in found.per_class) == 11, "of 12 objects one is a crowd"
        return
    with np.load(folder / "confusion.npz") as stored:
        counts = stored["counts"]
    right = 100.0 * np.trace(counts) / counts.sum()
    assert [one.count for one in found.per_class] == counts.sum(1).tolist()
    if task == "classification":
        assert counts.sum() == 359 and right == pytest.approx(found.metrics["top1"], abs=1e-4)
    else:
        ious = [one.scores["iou"] for one in found.per_class]
        assert right == pytest.approx(found.metrics["pixel_accuracy"], abs=1e-4)
        assert np.mean([value for value in ious if value is not None]) == pytest.approx(
            found.metrics["miou"], abs=1e-4
        )


def test_a_registered_version_names_its_evaluation_even_if_mlflow_was_away() -> None:
    folder, _ = trained("classification", register="digits")
    client = open_client(f"sqlite:///{folder}/mlflow.db")
    away = "http://127.0.0.1:1"  # where nothing listens: ports below 1024 aren't handed out
    # The registry is a file here: the model is found, then nobody answers.
    first = evaluated(
        folder, "classification", model={"from": str(folder / "runs/model")}, tracking={"uri": away}
    )
    kept = folder / "evaluations/measured"
    assert sent_to(kept) is None and first.metrics["top1"] > 50

    source = {"from": "models:/digits@champion"}
    found = evaluated(folder, "classification", model=source)
    assert found.model.pinned == "models:/digits/1" and found.model.given == "models:/digits@champion"
    run_id = sent_to(kept)
    tags = client.get_model_version("digits", "1").tags
    assert tags["eval.digits-val.run"] == run_id and tags["eval.digits-val.digest"] == found.dataset.digest
    assert float(tags["eval.digits-val.top1"]) == pytest.approx(found.metrics["top1"])
    logged = client.get_run(run_id or "")
    assert logged.data.metrics["eval/top1"] == pytest.approx(found.metrics["top1"])
    assert logged.data.tags["model.pinned"] == "models:/digits/1"
    assert {item.path for item in client.list_artifacts(run_id or "")} >= {"result.json", "confusion.png"}
    aside = [path for path in (folder / "evaluations").iterdir() if path != kept]
    assert len(aside) == 1 and read_result(aside[0]) == first, "what was not sent is kept"


def test_pixels_are_permuted_as_the_model_was_trained() -> None:
    folder, best = trained("classification", permute="patches")
    section = {"permutation": {"kinds": ["patches", "pixels"], "patch_size": 8}}
    found = evaluated(folder, "classification", evaluate=section)
    assert found.metrics["top1"] == pytest.approx(best["eval/top1"], abs=1e-6)
    assert found.permutation is not None
    patches, pixels = found.permutation.rows
    assert patches.metrics["top1"] == pytest.approx(found.metrics["top1"], abs=1e-6), (
        "that is how it was trained"
    )
    assert pixels.metrics["top1"] < found.metrics["top1"] - 10


def test_a_ray_worker_gives_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    folder, best = trained("classification")
    path = job_file(folder, "classification")
    assert main(["run", str(path)]) == 0
    found = read_result(folder / "evaluations/measured")
    assert found.metrics["top1"] == pytest.approx(best["eval/top1"], abs=1e-6)
    assert "top-1" in capfd.readouterr().out
    values = json.loads(path.read_text())
    values["launch"]["cpus"] = 999
    path.write_text(json.dumps(values))
    assert main(["run", str(path)]) == 2
    assert "launch.cpus (=999)" in capfd.readouterr().err
