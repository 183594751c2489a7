"""Exported programs and ONNX files compute what the models compute, for batches and sizes they weren't made with."""

from pathlib import Path

import pytest
import torch
from golden_models import fill_from_names
from torch import nn

from convmlp import ConvMLP, CycleMLP, Mixer, create_model
from convmlp.export import export_onnx, export_program, onnx_difference

TOLERANCE = 1e-5


def conv_mlp() -> nn.Module:
    return ConvMLP(5, stem_channels=8, conv_blocks=1, dims=(12, 16, 20), blocks=(1, 1, 1))


def cycle_mlp() -> nn.Module:
    return CycleMLP(5, dims=(8, 12), blocks=(1, 1), mlp_ratios=(2, 2))


def assert_same(program: torch.export.ExportedProgram, model: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), model.eval()(images))


@pytest.mark.slow
def test_a_cyclemlp_program_takes_any_batch_and_size(tmp_path: Path) -> None:
    model = cycle_mlp()
    program = export_program(model, (64, 96), dynamic_size=True)
    assert model.training
    torch.export.save(program, tmp_path / "cycle.pt2")
    assert_same(torch.export.load(tmp_path / "cycle.pt2"), model, (1, 3, 35, 97), (3, 3, 64, 64))


@pytest.mark.slow
def test_a_convmlp_program_takes_any_batch_and_size() -> None:
    model = conv_mlp()
    assert_same(export_program(model, 64, dynamic_size=True), model, (1, 3, 33, 97), (3, 3, 64, 64))


@pytest.mark.slow
def test_onnx_equals_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = Mixer(5, img_size=32, embed_dim=16, num_blocks=1)
    fill_from_names(model)
    path = export_onnx(model, tmp_path / "mixer.onnx", 32)
    assert [file.name for file in tmp_path.iterdir()] == ["mixer.onnx"]
    assert model.training
    for batch in (1, 3):
        assert onnx_difference(model, path, torch.randn(batch, 3, 32, 32)) < TOLERANCE


@pytest.mark.slow
def test_onnx_of_any_size_equals_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = cycle_mlp()
    path = export_onnx(model, tmp_path / "cycle.onnx", 64, dynamic_size=True)
    for shape in ((1, 3, 64, 64), (3, 3, 97, 45)):
        assert onnx_difference(model, path, torch.randn(shape)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "convmlp_s",
        "cyclemlp_b1",
        "mixer_s32",
        "pure_mlp_s",
        "resnet18",
        "regnetx_002",
        "vit_tiny_patch16_224",
    ],
)
def test_every_family_in_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = create_model(name, 10)
    if name.startswith("mixer"):  # its head of zeros would hide differences
        fill_from_names(model)
    path = export_onnx(model, tmp_path / "model.onnx", 224)
    assert onnx_difference(model, path, torch.randn(3, 3, 224, 224)) < TOLERANCE


@pytest.mark.slow
def test_a_backbone_in_onnx_gives_its_maps(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = create_model("convmlp_tiny", features_only=True)
    path = export_onnx(model, tmp_path / "backbone.onnx", 64, dynamic_size=True)
    assert onnx_difference(model, path, torch.randn(2, 3, 70, 101)) < TOLERANCE


def test_what_cannot_be_exported_is_said() -> None:
    with pytest.raises(ValueError, match="64 px or more, not 32x32"):
        export_program(cycle_mlp(), 32, dynamic_size=True)
    mixer = Mixer(5, img_size=64, embed_dim=16, num_blocks=1)
    with pytest.raises(ValueError, match="Mixer takes images of 64x64 only: export it without dynamic_size"):
        export_program(mixer, 64, dynamic_size=True)
    with pytest.raises(ValueError, match="its token-mixing weights fit one image size"):
        export_program(mixer, 32)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the Python packages onnx and onnxscript: pip install"):
        export_onnx(cycle_mlp(), tmp_path / "model.onnx", 64)
    with pytest.raises(ValueError, match="package onnxruntime"):
        onnx_difference(cycle_mlp(), tmp_path / "model.onnx", torch.zeros(1))
