"""Files as training scripts leave them: wrappers in names, two sets of weights, arguments beside them. timm is the
judge of what a user means."""

from __future__ import annotations

import argparse
import collections
import datetime
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convmlp import create_model
from convmlp.tasks.heads import create_dense_model
from convmlp.weight_files import read_weights
from convmlp.weights import load_pretrained, match_pretrained

State = dict[str, Tensor]


def network(num_classes: int = 10) -> nn.Module:
    return create_model("convmlp_tiny", num_classes, image_size=32)


@pytest.fixture(scope="module")
def raw() -> State:
    torch.manual_seed(1)
    return network().state_dict()


@pytest.fixture(scope="module")
def ema(raw: State) -> State:
    return {name: value + 1 if value.is_floating_point() else value for name, value in raw.items()}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path / "w.pth")
    return path / "w.pth"


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def same(model: nn.Module, state: State) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "model._orig_mod.",
        "module.model._orig_mod.",
        "_forward_module.model.",
        "_fsdp_wrapped_module.",
        "module._fsdp_wrapped_module._orig_mod.",
        "ema_model.module.",
    ],
)
def test_what_wrappers_put_before_names_is_taken_off(prefix: str, raw: State) -> None:
    model = network()
    load_pretrained(model, prefixed(raw, prefix))
    assert same(model, raw)
    other = network(7)
    report = load_pretrained(other, prefixed(raw, prefix))
    assert report.replaced == ("head.bias", "head.weight")


def test_real_wrappers(raw: State, tmp_path: Path) -> None:
    source = network()
    source.load_state_dict(raw)
    compiled = torch.compile(source)
    averaged = AveragedModel(source)
    assert next(iter(compiled.state_dict())).startswith("_orig_mod.")
    for content in (compiled.state_dict(), {"model_ema": averaged.state_dict()}, averaged.state_dict()):
        model = network()
        load_pretrained(model, saved(content, tmp_path))
        assert same(model, raw)
    blocks = {name.replace("conv_blocks.", "conv_blocks._orig_mod.", 1): value for name, value in raw.items()}
    assert blocks.keys() != raw.keys()
    assert load_pretrained(network(), blocks).loaded


class Wrapping(nn.Module):
    """A network whose own names begin as wrappers' do."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.model = nn.Linear(2, 2)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(2, 2))


def test_names_that_fit_as_they_are_stay() -> None:
    for model in (Wrapping(), Inner()):
        source = type(model)()
        load_pretrained(model, source.state_dict())
        assert same(model, source.state_dict())
        load_pretrained(model, prefixed(source.state_dict(), "module._orig_mod."))
        assert same(model, source.state_dict())


def test_a_prefix_that_is_in_the_way_of_nothing_is_no_excuse(raw: State) -> None:
    """Off where that makes all fit; where something else is wrong, that is what is told."""
    broken = prefixed({name: value for name, value in raw.items() if name != "norm.weight"}, "module.")
    with pytest.raises(ValueError, match=r"ConvMLP:\n  missing: norm\.weight \(\d+,\)\nMake"):
        load_pretrained(network(), broken)
    with pytest.raises(ValueError, match=r"missing: [\s\S]* and \d+ more"):
        load_pretrained(network(), prefixed(raw, "encoder."))
    twice = raw | prefixed(raw, "_orig_mod.")
    with pytest.raises(ValueError, match=r"unexpected: _orig_mod\."):
        load_pretrained(network(), twice)


def test_a_wrapped_detector_gives_its_backbone(raw: State) -> None:
    detector = create_dense_model("retinanet", "convmlp_tiny", 3, pyramid_channels=16)
    source = create_dense_model("retinanet", "convmlp_tiny", 3, pyramid_channels=16).state_dict()
    report = load_pretrained(detector, prefixed(source, "module._orig_mod."))
    assert not report.backbone_only and same(detector, source)
    assert match_pretrained(detector, prefixed(raw, "_orig_mod.")).backbone_only


@pytest.mark.parametrize("names", [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_of_two_sets_the_average_is_taken_and_said(
    names: tuple[str, str], raw: State, ema: State, tmp_path: Path
) -> None:
    file = saved({names[0]: raw, names[1]: prefixed(ema, "module."), "epoch": 3}, tmp_path)
    model, said = network(), list[str]()
    report = load_pretrained(model, file, note=said.append)
    assert same(model, ema) and same(model, load_state_dict(str(file), use_ema=True))
    assert report.notes == tuple(said) and len(said) == 1
    assert f"the moving average, {names[1]!r}, is taken, not {names[0]!r}" in said[0]
    with pytest.warns(UserWarning, match="the moving average"):
        load_pretrained(network(), file)
    load_pretrained(model, file, choice="raw", note=said.append)
    assert same(model, raw) and f"{names[0]!r} is taken, not the moving average" in said[1]
    load_pretrained(model, file, choice="ema", note=said.append)
    assert same(model, ema)
    with pytest.raises(ValueError, match=r"does not fit ConvMLP \(of its two sets .* moving average"):
        match_pretrained(create_model("convmlp_s", 10), file)


def test_a_choice_that_is_not_there(raw: State, ema: State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w\.pth holds no moving average"):
        read_weights(saved({"state_dict": raw, "state_dict_ema": None}, tmp_path), "ema")
    assert read_weights(tmp_path / "w.pth").choice is None
    file = saved({"model_ema": ema}, tmp_path)
    assert read_weights(file).taken == "model_ema"
    with pytest.raises(ValueError, match="holds a moving average alone"):
        read_weights(file, "raw")
    assert read_weights(saved(raw, tmp_path), "raw").taken == ""


def test_openmmlab_saves_the_average_in_the_other_s_place(raw: State, ema: State, tmp_path: Path) -> None:
    """mmengine's EMAHook swaps the two before it saves; its meta names the classes."""
    content = {
        "state_dict": ema,
        "ema_state_dict": prefixed(raw, "module.") | {"steps": torch.tensor(3)},
        "message_hub": {"log_scalars": {}},
        "meta": {"dataset_meta": {"classes": ("cat", "dog")}},
    }
    file = saved(content, tmp_path)
    assert read_weights(file).classes == ("cat", "dog")
    model = network()
    load_pretrained(model, file, note=lambda _line: None)
    assert same(model, ema)
    load_pretrained(model, file, choice="raw", note=lambda _line: None)
    assert same(model, raw)


def fake(patch: pytest.MonkeyPatch, name: str, base: type = object) -> Any:
    """A class of a package that needn't be installed here, as a pickle names it."""
    module, _, own = name.rpartition(".")
    for known in (module.partition(".")[0], module):
        patch.setitem(sys.modules, known, types.ModuleType(known))
    made = type(own, (base,), {"__module__": module})
    setattr(sys.modules[module], own, made)
    return made


def arguments(patch: pytest.MonkeyPatch) -> argparse.Namespace:
    config = fake(patch, "omegaconf.dictconfig.DictConfig")()
    config.content = {"lr": 1.0}
    attributes = fake(patch, "yacs.config.CfgNode", dict)(lr=1)
    attributes.frozen = True
    return argparse.Namespace(
        lr=1.0,
        output=Path("runs"),
        nested=argparse.Namespace(size=(3, 224, 224)),
        best=np.float64(77.1),
        values=np.arange(3),
        dtype=np.dtype("float32"),
        device=torch.device("cpu"),
        config=config,
        attributes=attributes,
        counts=collections.defaultdict(list, a=[1]),
        window=collections.deque([1, 2], maxlen=5),
        started=datetime.datetime(2026, 1, 1),
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_checkpoint_with_its_arguments_is_read(
    zipped: bool, raw: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {
        "model": raw,
        "optimizer": {"state": {}},
        "epoch": 3,
        "args": arguments(monkeypatch),
        "arch": "convmlp_tiny",
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    model = network()
    load_pretrained(model, tmp_path / "w.pth")
    assert same(model, raw)
    assert "argparse.Namespace" not in str(torch.serialization.get_safe_globals())


class Own:
    """Of a training script: nothing here may import it."""


class Calls:
    def __init__(self, what: Any, *arguments: Any) -> None:
        self.what = what, arguments

    def __reduce__(self) -> Any:
        return self.what


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"args": Own()}, r"an object of test_weights_of_trainers\.Own, which can't be read without"),
        (nn.Linear(2, 2), r"an object of torch\.nn\.modules\.linear\.Linear"),
        ({"args": Calls(Path.touch, Path("executed"))}, r"an object of (builtins\.)?getattr|pathlib"),
        ({"args": Calls(eval, "open('executed', 'w')")}, r"an object of (builtins\.)?eval"),
        ({"args": Calls(__import__("os").system, "touch executed")}, r"an object of posix\.system"),
    ],
    ids=["class", "module", "method", "eval", "system"],
)
def test_what_needs_code_is_refused_in_one_line(
    content: Any, said: str, tmp_path: Path, raw: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, dict):
        content = {"model": raw} | content
    with pytest.raises(ValueError, match=said) as caught:
        load_pretrained(network(), saved(content, tmp_path))
    message = str(caught.value)
    assert message.startswith(f"cannot read weights from {tmp_path / 'w.pth'}: it holds")
    assert message.endswith("torch.save(model.state_dict(), 'weights.pth'), or safetensors")
    assert "\x1b" not in message and "\n" not in message and "weights_only" not in message
    assert not Path("executed").exists()


@pytest.mark.filterwarnings("ignore")
def test_other_things_of_torch_are_refused_in_one_line(tmp_path: Path, raw: State) -> None:
    torch.save(raw, tmp_path / "four.pth", pickle_protocol=4)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    for name, said in (("four.pth", "another protocol"), ("script.pt", "TorchScript program")):
        with pytest.raises(ValueError, match=said) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_dtype_that_a_pickle_rewrites_is_none_of_numpy_s(tmp_path: Path, raw: State) -> None:
    """numpy.dtype's own state, set from outside, harms the process: what is built here is only a stand-in."""

    class Rewritten:
        def __reduce__(self) -> Any:
            return np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 1 << 62)

    load_pretrained(network(), saved({"model": raw, "args": {"dtype": Rewritten()}}, tmp_path))
    assert np.dtype("f8").itemsize == 8 and np.zeros(3).sum() == 0


def test_a_head_for_other_classes_is_made_anew_on_request(raw: State) -> None:
    model = network()
    fresh = model.head.weight.detach().clone()
    report = load_pretrained(model, raw, fresh_head=True)
    assert report.replaced == ("head.bias", "head.weight") and report.head == ()
    assert torch.equal(model.head.weight, fresh)
    assert load_pretrained(model, raw).head == ("head.bias", "head.weight")
    assert not re.search("head", " ".join(report.loaded))
