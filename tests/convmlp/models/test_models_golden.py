"""ConvMLP, CycleMLP and Mixer equal the published implementations: outputs, parameters, state_dict keys.

`golden.json` quotes numbers that the authors' own code computed (tests/golden_models.py says which and how):
`logits` are classes 0, 499, 999 of both images; the `ends` of a map are the first and last entry of its corner
`[:, :8, :3, :3]`. Where CONVMLP_GOLDEN names the folder with the whole arrays, these are compared, too.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_models import digest, on_meta, run

HERE = Path(__file__).parent
CASES = json.loads((HERE / "golden.json").read_text())
KEYS = json.loads((HERE / "published_keys.json").read_text())
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
FAST_AT_224 = {"cyclemlp_b1", "mixer_s32"}
FAST = {"convmlp_s", "cyclemlp_b1"}


def cases() -> list[Any]:
    """The small ones in `make test`, all of them in `make test-slow`."""
    params = []
    for case in CASES:
        is_fast = case["name"] in (FAST_AT_224 if case["size"] == [224, 224] else FAST)
        marks = [] if is_fast else [pytest.mark.slow]
        params.append(
            pytest.param(case, marks=marks, id=f"{case['name']}-{case['size'][0]}x{case['size'][1]}")
        )
    return params


def assert_equal_digests(ours: dict[str, Any], golden: dict[str, Any], tolerance: float) -> None:
    scale = golden["logits_norm"] / np.sqrt(2000)
    assert np.abs(np.subtract(ours["logits"], golden["logits"])).max() <= tolerance * scale
    assert ours["logits_norm"] == pytest.approx(golden["logits_norm"], rel=tolerance)
    assert len(ours["maps"]) == len(golden["maps"])
    for one, other in zip(ours["maps"], golden["maps"], strict=True):
        assert one["shape"] == other["shape"]
        for key in ("mean_std", "ends", "corner_norm"):
            assert one[key] == pytest.approx(other[key], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("case", cases())
def test_outputs_equal_the_published_implementation(case: dict[str, Any]) -> None:
    arrays = run(case["name"], tuple(case["size"]))
    assert_equal_digests(digest(arrays), case, TOLERANCE[torch.float64])
    folder = os.environ.get("CONVMLP_GOLDEN")
    if folder:
        height, width = case["size"]
        prefix = f"{case['name']}/{height}x{width}/"
        with np.load(Path(folder) / "golden.npz") as golden:
            theirs = {key.removeprefix(prefix): golden[key] for key in golden if key.startswith(prefix)}
        assert arrays.keys() == theirs.keys()
        for key, values in theirs.items():
            error = np.abs(arrays[key] - values).max() / np.abs(values).max()
            assert error <= TOLERANCE[torch.float64], key


@pytest.mark.parametrize("name", ["convmlp_s", "cyclemlp_b1", "mixer_s32"])
def test_single_precision_is_close(name: str) -> None:
    case = next(case for case in CASES if case["name"] == name)
    if name == "convmlp_s":
        case = next(case for case in CASES if case["name"] == name and case["size"] == [97, 131])
    ours = digest(run(name, tuple(case["size"]), torch.float32))
    assert_equal_digests(ours, case, TOLERANCE[torch.float32])


PARAMETERS = {
    "convmlp_s": 9_022_920,
    "convmlp_m": 17_410_504,
    "convmlp_l": 42_728_440,
    "mixer_s32": 19_104_624,
    "mixer_s16": 18_528_264,
    "mixer_b32": 60_293_428,
    "mixer_b16": 59_880_472,
    "mixer_l32": 206_939_264,
    "mixer_l16": 208_196_168,
    "mixer_h14": 432_350_952,
    "cyclemlp_b1": 15_155_400,
    "cyclemlp_b2": 26_802_504,
    "cyclemlp_b3": 38_385_720,
    "cyclemlp_b4": 51_796_552,
    "cyclemlp_b5": 75_747_280,
}
BASELINES = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "regnetx_002": 2_684_792,
    "regnetx_004": 5_157_512,
    "regnetx_008": 7_259_656,
    "regnetx_016": 9_190_136,
    "regnetx_032": 15_296_552,
    "regnety_002": 3_162_996,
    "regnety_004": 4_344_144,
    "regnety_008": 6_263_168,
    "regnety_016": 11_202_430,
    "regnety_032": 19_436_338,
    "regnety_080": 39_180_068,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch32_224": 88_224_232,
    "vit_large_patch16_224": 304_326_632,
}
OTHER_HEADS = {
    ("convmlp_s", 10): 8_515_050,
    ("convmlp_m", 100): 16_948_804,
    ("convmlp_l", 102): 42_037_878,
    ("cyclemlp_b1", 10): 14_647_530,
    ("mixer_s16", 0): 18_015_264,
    ("mixer_h14", 0): 431_069_952,
    ("mixer_b16", 21_843): 75_908_739,
    ("mixer_l16", 21_843): 229_560_243,
}
BACKBONES = {
    "convmlp_s": 8_508_896,
    "convmlp_m": 16_896_480,
    "convmlp_l": 41_957_904,
    "cyclemlp_b1": 14_643_424,
    "cyclemlp_b2": 26_290_528,
    "cyclemlp_b3": 37_873_744,
    "cyclemlp_b4": 51_284_576,
    "cyclemlp_b5": 74_979_624,
}


def num_parameters(name: str, **options: Any) -> int:
    return sum(p.numel() for p in on_meta(name, **options).parameters())


# Half a second of a core each: timm draws their weights in Python.
MOST_MIXERS = {"mixer_s16", "mixer_b32", "mixer_l32", "mixer_l16", "mixer_h14"}


def counts(names: Iterable[str]) -> dict[str, int]:
    return {name: num_parameters(name) for name in names}


def counts_of_heads(keys: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    return {key: num_parameters(key[0], num_classes=key[1]) for key in keys}


def test_parameter_counts_are_the_published_ones() -> None:
    assert counts(["resnet18", *PARAMETERS.keys() - MOST_MIXERS]).items() <= (PARAMETERS | BASELINES).items()
    heads = [key for key in OTHER_HEADS if not key[0].startswith("mixer") or key == ("mixer_s16", 0)]
    assert counts_of_heads(heads).items() <= OTHER_HEADS.items()
    assert {name: num_parameters(name, features_only=True) for name in BACKBONES} == BACKBONES


@pytest.mark.slow
def test_parameter_counts_of_the_others() -> None:
    assert counts(PARAMETERS | BASELINES) == PARAMETERS | BASELINES
    assert counts_of_heads(OTHER_HEADS) == OTHER_HEADS


@pytest.mark.parametrize(
    ("size", "num_classes", "parameters"), [(32, 10, 17_232_426), (96, 10, 17_363_754)], ids=["cifar", "stl"]
)
def test_mixer_at_the_size_of_small_images(size: int, num_classes: int, parameters: int) -> None:
    assert num_parameters("mixer_s16", num_classes=num_classes, image_size=size) == parameters


@pytest.mark.parametrize("name", KEYS)
def test_state_dict_has_the_authors_keys_and_shapes_in_order(name: str) -> None:
    model = on_meta(name)
    entries = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert len(entries) == KEYS[name]["entries"]
    assert hashlib.sha256(json.dumps(entries).encode()).hexdigest() == KEYS[name]["sha256"]


def test_stochastic_depth_restarts_in_each_stage_of_convmlp() -> None:
    model = on_meta("convmlp_m")
    rates = [[getattr(b.drop_path, "drop_prob", 0.0) for b in stage.blocks] for stage in model.stages]
    expected = [[0, 0.05, 0.1], [0, 0.02, 0.04, 0.06, 0.08, 0.1], [0, 0.05, 0.1]]
    assert [pytest.approx(stage) for stage in expected] == rates


@pytest.mark.parametrize(("name", "num_blocks"), [("cyclemlp_b1", 10), ("mixer_s32", 8)])
def test_stochastic_depth_rises_over_all_blocks_of_the_others(name: str, num_blocks: int) -> None:
    model = on_meta(name, drop_path_rate=0.3)
    blocks = [module for module in model.modules() if hasattr(module, "drop_path")]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * i / (num_blocks - 1) for i in range(num_blocks)])
