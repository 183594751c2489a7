"""`convmlp compare`: what the records say, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import convmlp
from convmlp_platform.cli import main
from convmlp_platform.config.load import parse_job
from convmlp_platform.evaluation.compare.compare_runs import compared_mlflow
from convmlp_platform.evaluation.compare.compare_table import markdown_table, plot, rows, text_table
from convmlp_platform.evaluation.compare.compared import Compared
from convmlp_platform.evaluation.compare.find_compared import find_compared, ordered, warnings_of
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import Dataset, Journal, MetricsRecord, Tags
from convmlp_platform.tracking.mlflow.client import RunRecord

DIGEST = "sha256:" + "ab" * 32
CLASSES = tuple("abcdefghij")


def job_values(name: str, model: str, data: str = "nowhere") -> dict[str, Any]:
    return {
        "kind": "train",
        "name": name,
        "model": {"name": model},
        "data": {"path": data, "image_size": 32},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 2, "global_batch_size": 64, "micro_batch_size": 32},
    }


def run_folder(root: Path, name: str, model: str, scores: list[float], digest: str = DIGEST) -> Path:
    """A run as training leaves it, as far as a comparison looks."""
    folder = root / name
    folder.mkdir(parents=True)
    job = parse_job(job_values(name, model), "test").model_dump(mode="json")
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "run.json").write_text(json.dumps({"identity_fields": {}}))
    journal = Journal(journal_path(folder))
    journal.append(Dataset(name="letters", digest=digest, source="x", context="training"))
    for epoch, score in enumerate(scores, 1):
        speed = {"train/images_per_second": 100.0 * epoch}
        journal.append(MetricsRecord(step=10 * epoch, values=speed | {"train/loss": 1.0}))
        values = {"eval/loss": 1 - score / 100, "eval/top1": score, "eval/top5": score + 1}
        journal.append(MetricsRecord(step=10 * epoch, values=values))
    network = convmlp.create_model(model, 10, image_size=32)
    parameters = sum(tensor.numel() for tensor in network.parameters())
    journal.append(Tags(values={"model.parameters": str(parameters)}))
    journal.close()
    spec = BundleSpec(
        model=model, num_classes=10, classes=CLASSES, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3,
        provenance={"run": name, "dataset": "letters", "dataset_digest": digest, "metrics": judged(max(scores))},
    )  # fmt: skip
    write_bundle(folder / "best", network.state_dict(), spec)
    return folder


def judged(score: float) -> dict[str, float]:
    """Of the average and of the plain weights, which were worse."""
    return {"eval/top1": score, "eval_average/top1": score, "eval_plain/top1": score - 1.0}


def test_a_run_is_told_by_its_own_records(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "tiny", "convmlp_tiny", [50.0, 70.0, 60.0])
    (line,) = find_compared(str(run))
    assert (line.label, line.model, line.family, line.kind) == ("tiny", "convmlp_tiny", "convmlp", "run")
    assert (line.dataset, line.digest, line.split) == ("letters", DIGEST, "val")
    assert line.metrics == pytest.approx({"loss": 0.3, "top1": 70.0, "top5": 71.0})
    assert line.last["top1"] == 60.0
    assert line.images_per_second == 200.0
    assert line.epochs is None  # its dataset is out of reach
    network = convmlp.create_model("convmlp_tiny", 10, image_size=32)
    from convmlp.model_cost import count_macs, count_parameters

    assert (line.parameters, line.macs) == (count_parameters(network), count_macs(network, 32))
    assert line.counted == ("macs",)


def test_the_metric_asked_for_says_which_evaluation_is_the_best(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "tiny", "convmlp_tiny", [50.0, 70.0, 60.0])
    (line,) = find_compared(str(run), "loss")
    assert line.metrics["loss"] == pytest.approx(0.3)


def test_a_bundle_is_told_by_its_provenance(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "tiny", "convmlp_tiny", [70.0])
    (line,) = find_compared(str(run / "best"))
    assert (line.kind, line.label, line.metrics, line.digest) == ("bundle", "tiny", {"top1": 70.0}, DIGEST)
    assert line.counted == ("parameters", "macs")


def test_an_mlflow_run_is_told_by_its_params_and_tags() -> None:
    line = compared_mlflow(
        RunRecord(
            run_id="a" * 32,
            name="far",
            params={
                "model.name": "convmlp_tiny", "model.num_classes": "None", "model.options.stem_stride": "2",
                "task.name": "classification", "task.anchor_scale": "None", "data.image_size": "32",
            },
            tags={"dataset.classes": "10", "dataset.digest": DIGEST, "model.parameters": "831610"},
            history=[(5, {"eval/top1": 40.0, "eval/loss": 1.0}), (9, {"train/images_per_second": 7.0})],
            dataset="letters",
            seconds=60.0,
        )
    )  # fmt: skip
    assert (line.label, line.metrics["top1"], line.parameters, line.images_per_second) == (
        "far",
        40.0,
        831_610,
        7.0,
    )
    assert line.macs is not None and 20e6 < line.macs < 22e6


def test_a_record_of_another_network_is_not_given_this_ones_macs() -> None:
    record = RunRecord(
        "a" * 32, "far", {"model.name": "convmlp_tiny", "data.image_size": "32"},
        {"dataset.classes": "10", "model.parameters": "12345"}, [], None, None,
    )  # fmt: skip
    line = compared_mlflow(record)
    assert (line.parameters, line.macs, line.counted) == (12345, None, ())


def test_the_best_comes_first_and_those_without_the_metric_last() -> None:
    lines = [
        Compared(label, "run", label, "resnet18", "classification", metrics=metrics)
        for label, metrics in (
            ("none", {}),
            ("low", {"top1": 1.0, "loss": 3.0}),
            ("high", {"top1": 2.0, "loss": 4.0}),
        )
    ]
    assert [line.label for line in ordered(lines)[1]] == ["high", "low", "none"]
    assert [line.label for line in ordered(lines, "eval/loss")[1]] == ["low", "high", "none"]


def test_tables_show_what_there_is_and_warn_where_digests_differ(tmp_path: Path) -> None:
    run_folder(tmp_path, "tiny", "convmlp_tiny", [50.0, 70.0])
    run_folder(tmp_path, "res-net", "resnet18", [80.0], "sha256:" + "cd" * 32)
    metric, lines = ordered(
        [*find_compared(str(tmp_path / "tiny")), *find_compared(str(tmp_path / "res-net"))]
    )
    table = rows(lines, metric)
    assert table[0] == [
        "",
        "model",
        "top-1",
        "last",
        "top-5",
        "parameters",
        "MACs",
        "px",
        "train img/s",
        "dataset",
    ]
    assert [row[0] for row in table[1:]] == ["res-net", "tiny"]
    assert table[2][2:7] == ["70.00", "70.00", "71.00", "0.83 M", "6.7 M*"]
    assert len({len(line) for line in text_table([row[:3] for row in table])}) == 1
    assert markdown_table(table)[2].startswith("| res-net | resnet18 | 80.00 |")
    assert markdown_table([["a"], ["b|c"]])[-1] == "| b\\|c |"
    assert warnings_of(lines[:1] * 2, metric) == []
    (different,) = warnings_of(lines, metric)
    assert different.startswith(
        "measured on different images: letters (sha256:cdcdcdcdcdcd): res-net; letters ("
    )
    assert plot(lines, metric, tmp_path / "p.svg", title="t", subtitle="s") == tmp_path / "p.svg"
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


def test_the_command_takes_folders_of_sweeps_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "sweep", "tiny", "convmlp_tiny", [50.0])
    run_folder(tmp_path / "sweep", "small", "convmlp_tiny", [60.0])
    (tmp_path / "sweep" / "sweep.json").write_text('{"trials": ["tiny", "small", "not-begun"]}')
    picture = tmp_path / "picture.png"
    assert main.main(["compare", str(tmp_path / "sweep"), "--json", "--plot", str(picture)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["metric"], [model["label"] for model in told["models"]]) == ("top1", ["small", "tiny"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main.main(["compare", str(tmp_path / "sweep")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("small")


def test_what_is_not_there_is_told_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main.main(["compare", "nowhere", "0" * 32]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: nowhere: there is no such file or folder")
    assert "there is no MLflow at sqlite:///" in second
    assert not (tmp_path / "mlflow.db").exists()
    run = run_folder(tmp_path, "tiny", "convmlp_tiny", [50.0])
    assert main.main(["compare", str(run), "--metric", "miou"]) == 2
    assert "none of these has miou; there are loss, top1, top5" in capsys.readouterr().err
