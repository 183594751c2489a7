"""`convmlp predict` for every task: what stands on the terminal, in JSON and in files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_dense import tiny_dense

import convmlp
from convmlp_platform.cli.main import main
from convmlp_platform.models.bundle import BundleSpec, write_bundle


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "some.png"
    tiny_dense("retinanet").split.image(0)[0].resize((90, 70)).save(path)
    return path


def test_objects_line_by_line(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = tiny_dense("retinanet")
    assert main(["predict", str(tiny.bundle), str(picture), "--min-score", "0.0595"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{picture}: {len(lines)} objects (left, top, right, bottom in pixels)"
    assert 0 < len(lines) < 100
    name, number, score, *box = lines[0].split()
    assert f"{name} {number}" in tiny.spec.classes and float(score) == 0.06 and len(box) == 4
    assert main(["predict", str(tiny.bundle), str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}: no object with a score of 0.5 or more\n"


def test_objects_for_programs(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_dense("mask_rcnn").bundle
    assert main(["predict", str(bundle), str(picture), "--json", "--min-score", "0.05"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["image"], row["height"], row["width"]) == (str(picture), 70, 90)
    assert row["objects"] and row["objects"][0]["segmentation"]["size"] == [70, 90]


def test_segmentation_in_shares_and_files(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = tiny_dense("semantic_fpn").bundle, tmp_path / "maps"
    assert main(["predict", str(bundle), str(picture), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{picture}: color ")
    labels = np.asarray(Image.open(out / "some.png"))
    assert labels.shape == (70, 90) and labels.max() < 3
    assert main(["predict", str(bundle), str(picture), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert sum(row["shares"].values()) == pytest.approx(1.0)
    number = tiny_dense("semantic_fpn").spec.classes.index(max(row["shares"], key=row["shares"].get))
    assert np.bincount(labels.ravel()).argmax() == number


def test_label_maps_overwrite_nothing(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "other" / picture.name
    twin.parent.mkdir()
    twin.write_bytes(picture.read_bytes())
    bundle = str(tiny_dense("semantic_fpn").bundle)
    assert main(["predict", bundle, str(picture), str(twin), "--out", str(tmp_path / "maps")]) == 2
    assert "would both be written to" in capsys.readouterr().err
    assert main(["predict", bundle, str(picture), "--out", str(tmp_path)]) == 2
    assert "is one of the images" in capsys.readouterr().err
    assert (
        main(["predict", str(tiny_dense("retinanet").bundle), str(picture), "--out", str(tmp_path / "x")])
        == 2
    )
    assert "makes no label maps" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_run_s_folder_means_its_best_model(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    spec = BundleSpec(
        model="convmlp_tiny", num_classes=4, classes=tuple("abcd"), image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3
    )  # fmt: skip
    model = convmlp.create_model("convmlp_tiny", num_classes=4)
    write_bundle(tmp_path / "run" / "best", model.state_dict(), spec)
    assert main(["predict", str(tmp_path / "run"), str(picture), "--json", "--top-k", "2"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert len(row["labels"]) == 2 and row["labels"][0]["name"] in "abcd"
    assert main(["predict", str(tmp_path / "run"), str(picture)]) == 0
    assert capsys.readouterr().out.count("%") == 3


def test_what_cannot_predict_is_told(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, weights)
    assert main(["predict", str(weights), str(picture)]) == 2
    assert "only weights are there (a file)" in capsys.readouterr().err
    assert main(["predict", "models:/x@y", str(tmp_path / "none.png")]) == 2
    assert "none.png: no such image file" in capsys.readouterr().err
    assert main(["predict", "models:/x@y", str(picture), "--min-score", "2"]) == 2
    assert "must be a number from 0 to 1" in capsys.readouterr().err
