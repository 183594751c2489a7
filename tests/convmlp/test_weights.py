"""Released weight files load as they are, the head is replaced where it must be, nothing else slips by."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from golden_models import fill_from_names
from safetensors.torch import save_file
from timm.models.mlp_mixer import MlpMixer

from convmlp import create_model
from convmlp.tasks.heads import create_dense_model
from convmlp.weights import load_pretrained, match_pretrained

CYCLE = {"dims": (8, 12, 16, 20), "blocks": (1, 1, 1, 1)}
MIXER = {"img_size": 64, "embed_dim": 32, "num_blocks": 2}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the authors released theirs: ConvMLP-S, 1000 classes, bare state_dict, `torch.save`."""
    path = tmp_path_factory.mktemp("released") / "convmlp_s_imagenet.pth"
    torch.manual_seed(1)
    torch.save(create_model("convmlp_s").state_dict(), path)
    return path


def test_the_whole_file_loads_into_1000_classes(released: Path) -> None:
    model = create_model("convmlp_s")
    report = load_pretrained(model, released)
    assert len(report.loaded) == 184
    assert report.replaced == report.dropped == ()
    for key, value in torch.load(released, weights_only=True).items():
        assert torch.equal(value, model.state_dict()[key])


def test_another_number_of_classes_keeps_the_fresh_head(released: Path) -> None:
    model = create_model("convmlp_s", 10)
    fresh = model.head.weight.detach().clone()
    report = load_pretrained(model, released)
    assert report.replaced == ("head.bias", "head.weight")
    assert len(report.loaded) == 182
    assert torch.equal(model.head.weight, fresh)
    assert torch.equal(model.norm.weight, torch.load(released, weights_only=True)["norm.weight"])


def test_a_headless_model_drops_the_head(released: Path) -> None:
    report = load_pretrained(create_model("convmlp_s", 0), released)
    assert report.dropped == ("head.bias", "head.weight")
    assert len(report.loaded) == 182


def test_create_model_loads_safetensors(tmp_path: Path) -> None:
    source = create_model("convmlp_tiny", 5)
    save_file(source.state_dict(), tmp_path / "tiny.safetensors")
    model = create_model("convmlp_tiny", 5, pretrained_path=tmp_path / "tiny.safetensors")
    torch.testing.assert_close(model.state_dict(), source.state_dict())


def test_the_head_of_a_timm_model_is_found(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(create_model("resnet10t", 1000).state_dict(), path)
    report = load_pretrained(create_model("resnet10t", 10), path)
    assert report.replaced == ("fc.bias", "fc.weight")
    assert load_pretrained(create_model("resnet10t", 0), path).dropped == ("fc.bias", "fc.weight")


def test_another_network_is_refused_and_the_model_left_alone(released: Path) -> None:
    model = create_model("convmlp_tiny")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit ConvMLP[\s\S]*unexpected: [\s\S]*more"):
        load_pretrained(model, released)
    torch.testing.assert_close(model.state_dict(), before)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_one_wrong_entry_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    state = create_model("convmlp_tiny", 10).state_dict()
    if damage == "missing":
        del state["norm.weight"]
    elif damage == "unexpected":
        state["norm.scale"] = torch.ones(3)
    else:
        state["norm.weight"] = torch.ones(3)
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(ValueError, match=rf"{damage}: norm\.(weight|scale)"):
        load_pretrained(create_model("convmlp_tiny", 10), tmp_path / "damaged.pth")


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_files_that_are_no_bare_state_dict_are_refused(tmp_path: Path) -> None:
    model = create_model("convmlp_tiny", 10)
    nested = tmp_path / "nested.pth"
    torch.save({"network": model.state_dict(), "epoch": 3}, nested)
    with pytest.raises(ValueError, match="epoch"):
        load_pretrained(model, nested)
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not weights")
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(nested.read_bytes()[:1000])
    hostile = tmp_path / "hostile.pth"
    torch.save({"head.weight": Payload()}, hostile)
    for path in (garbage, truncated, hostile, tmp_path / "absent.pth"):
        with pytest.raises(ValueError, match=path.name):
            load_pretrained(model, path)
    assert not Path("executed").exists()


def test_an_empty_file_is_not_a_success(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="missing"):
        load_pretrained(create_model("convmlp_tiny", 10), tmp_path / "empty.pth")


def filled(name: str, **options: object) -> torch.nn.Module:
    return fill_from_names(create_model(name, **options))  # type: ignore[arg-type]


def test_cyclemlp_files_keep_their_weights_under_model(tmp_path: Path) -> None:
    source = filled("cyclemlp_b1", **CYCLE)
    torch.save({"model": source.state_dict()}, tmp_path / "CycleMLP_B1.pth")
    model = create_model("cyclemlp_b1", pretrained_path=tmp_path / "CycleMLP_B1.pth", **CYCLE)
    torch.testing.assert_close(model.state_dict(), source.state_dict())
    report = load_pretrained(create_model("cyclemlp_b1", 10, **CYCLE), tmp_path / "CycleMLP_B1.pth")
    assert report.replaced == ("head.bias", "head.weight")


def test_offsets_that_are_no_whole_pixels_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    model = create_model("cyclemlp_b1", **CYCLE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = filled("cyclemlp_b1", **CYCLE).state_dict()
    torch.save(
        {"model": state | {"network.2.0.attn.sfc_w.offset": torch.rand(1, 24, 1, 1)}}, tmp_path / "a.pth"
    )
    with pytest.raises(ValueError, match=r"a\.pth: network\.2\.0\.attn\.sfc_w\.offset: .* whole pixels"):
        load_pretrained(model, tmp_path / "a.pth")
    torch.testing.assert_close(model.state_dict(), before)


@pytest.mark.parametrize("name", ["convmlp_tiny", "cyclemlp_b1", "resnet10t", "regnetx_002"])
def test_a_backbone_takes_its_part_of_a_classifier(name: str, tmp_path: Path) -> None:
    options = CYCLE if name.startswith("cycle") else {}
    source = filled(name, **options)
    torch.save(source.state_dict(), tmp_path / "classifier.pth")
    backbone = create_model(name, features_only=True, **options)
    report = load_pretrained(backbone, tmp_path / "classifier.pth")
    entries = len(backbone.state_dict())
    assert len(report.loaded) + len(report.fresh) == entries
    assert any("head" in key or "fc" in key for key in report.dropped)
    if name.startswith("cycle"):
        assert report.fresh == tuple(f"norm{i}.{kind}" for i in (0, 2, 4, 6) for kind in ("bias", "weight"))
    else:
        assert report.fresh == ()
    if name == "convmlp_tiny":
        images = torch.randn(1, 3, 64, 64)
        maps = source.eval().forward_intermediates(images, intermediates_only=True)  # type: ignore[operator]
        torch.testing.assert_close(backbone.eval()(images), maps)


def test_a_backbone_takes_its_part_of_a_detector(tmp_path: Path) -> None:
    """mmdet and mmseg put "backbone." in front and nest all under "state_dict"."""
    source = create_model("cyclemlp_b1", features_only=True, **CYCLE).model
    fill_from_names(source)
    detector = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    detector["bbox_head.weight"] = torch.ones(3)
    torch.save({"meta": {"epoch": 12}, "state_dict": detector}, tmp_path / "retinanet.pth")
    backbone = create_model(
        "cyclemlp_b1", features_only=True, pretrained_path=tmp_path / "retinanet.pth", **CYCLE
    )
    torch.testing.assert_close(backbone.model.state_dict(), source.state_dict())


def google_npz(state: dict[str, torch.Tensor], path: Path) -> Path:
    """The state of a timm Mixer as Google's release keeps it: Flax's names, [in, out] and HWIO kernels."""
    arrays = {}
    for name, value in state.items():
        key = (
            name.replace("stem.proj", "stem").replace("norm1", "LayerNorm_0").replace("norm2", "LayerNorm_1")
        )
        key = key.replace("fc1", "Dense_0").replace("fc2", "Dense_1")
        key = key.replace("mlp_tokens", "token_mixing").replace("mlp_channels", "channel_mixing")
        if key.startswith("norm."):
            key = key.replace("norm", "pre_head_layer_norm")
        key = key.replace("blocks.", "MixerBlock_").replace(".", "/")
        leaf = "scale" if value.ndim == 1 else "kernel"
        array = value.numpy()
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        arrays[key.replace("weight", leaf)] = array
    np.savez(path.open("wb"), **arrays)
    return path


def test_googles_npz_gives_timms_outputs(tmp_path: Path) -> None:
    theirs = fill_from_names(MlpMixer(10, **MIXER)).eval()
    path = google_npz(theirs.state_dict(), tmp_path / "Mixer-B_16.npz")
    with np.load(path) as arrays:
        assert arrays["stem/kernel"].shape == (16, 16, 3, 32)
        assert arrays["MixerBlock_1/token_mixing/Dense_0/kernel"].shape == (16, 16)
        assert {"head/kernel", "pre_head_layer_norm/scale"} < set(arrays)
    images = torch.randn(2, 3, 64, 64)
    with pytest.warns(UserWarning, match="gelu='tanh'"):
        ours = create_model("mixer_b16", 10, pretrained_path=path, **MIXER).eval()
    torch.testing.assert_close(ours(images), theirs(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_google = create_model("mixer_b16", 10, pretrained_path=path, gelu="tanh", **MIXER).eval()
    tanh_gelu = partial(torch.nn.GELU, approximate="tanh")
    torch.testing.assert_close(
        as_google(images), fill_from_names(MlpMixer(10, act_layer=tanh_gelu, **MIXER)).eval()(images)
    )
    assert not torch.equal(as_google(images), ours(images))
    report = load_pretrained(create_model("mixer_b16", 5, gelu="tanh", **MIXER), path)
    assert report.replaced == ("head.bias", "head.weight")
    assert torch.equal(theirs.head.weight, ours.head.weight)


def test_timms_files_load_into_mixer(tmp_path: Path) -> None:
    theirs = fill_from_names(timm.create_model("mixer_s32_224", num_classes=10)).eval()
    save_file(theirs.state_dict(), tmp_path / "timm.any")  # found out from the content
    ours = create_model("mixer_s32", 10, pretrained_path=tmp_path / "timm.any").eval()
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(ours(images), theirs(images))
    with pytest.raises(
        ValueError, match=r"mlp_tokens[\s\S]*another image size: make the model with that img_size"
    ):
        create_model("mixer_s32", 10, image_size=64, pretrained_path=tmp_path / "timm.any")


def test_other_npz_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(ValueError, match=r"other\.npz: this \.npz holds no MLP-Mixer"):
        load_pretrained(create_model("mixer_s32", 10, image_size=64), tmp_path / "other.npz")
    keys = {
        "stem/kernel": np.ones(1),
        "MixerBlock_0/token_mixing/Dense_0/kernel": np.array([Payload()], dtype=object),
    }
    np.savez(tmp_path / "hostile.npz", **keys)
    with pytest.raises(ValueError, match=r"cannot read weights from .*hostile\.npz"):
        load_pretrained(create_model("mixer_s32", 10, image_size=64), tmp_path / "hostile.npz")
    assert not Path("executed").exists()


def test_a_training_checkpoint_of_ddp_loads(tmp_path: Path) -> None:
    source = create_model("convmlp_tiny", 5)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "arch": "convmlp_tiny"}, tmp_path / "checkpoint-3.pth")
    model = create_model("convmlp_tiny", 5, pretrained_path=tmp_path / "checkpoint-3.pth")
    torch.testing.assert_close(model.state_dict(), source.state_dict())


def test_a_segmenter_takes_a_whole_segmenter_or_another_model_s_backbone() -> None:
    detector = create_dense_model("retinanet", "convmlp_tiny", 3, pyramid_channels=16)
    segmenter = create_dense_model("semantic_fpn", "convmlp_tiny", 2, pyramid_channels=16)
    fresh = segmenter.classifier.weight.detach().clone()
    report = load_pretrained(segmenter, detector.state_dict())
    assert report.backbone_only and report.fresh == report.replaced == ()
    body = {f"backbone.body.model.{key}" for key in report.loaded}
    assert all(torch.equal(segmenter.state_dict()[key], detector.state_dict()[key]) for key in body)
    assert torch.equal(segmenter.classifier.weight, fresh)
    of_other_classes = create_dense_model("semantic_fpn", "convmlp_tiny", 5, pyramid_channels=16).to("meta")
    report = match_pretrained(of_other_classes, segmenter.state_dict())
    assert not report.backbone_only and report.replaced == ("classifier.bias", "classifier.weight")
    assert len(report.loaded) == len(segmenter.state_dict()) - 2
    with pytest.raises(ValueError, match=r"the state_dict does not fit[\s\S]*shape: backbone\.fpn"):
        match_pretrained(
            create_dense_model("semantic_fpn", "convmlp_tiny", 2, pyramid_channels=8), segmenter.state_dict()
        )
