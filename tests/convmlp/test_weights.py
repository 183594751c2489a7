"""Released weight files load as they are, the head is replaced where it must be, nothing else slips by."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convmlp import create_model
from convmlp.weights import load_pretrained


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
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, nested)
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
