"""ConvMLP-S/M/L equal the authors' implementation: parameters, state_dict keys, logits, dense maps.

`golden.json` quotes numbers computed by the authors' own code (SHI-Labs/Convolutional-MLPs, commit 092bf71)
in float64, evaluation mode. Weights are a function of their official name (`fill_from_names`), the input is
`default_rng(0).standard_normal((2, 3, H, W))`. `logits` are classes 0, 499, 999 of both images; the `ends` of
a map are the first and last entry of its corner `[:, :8, :3, :3]`.
"""

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convmlp import ConvMLP, create_model

CASES = json.loads((Path(__file__).parent / "golden.json").read_text())
TOLERANCE = 1e-9


def fill_from_names(model: nn.Module) -> nn.Module:
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        shape = tuple(value.shape)
        z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("running_var"):
            z = 1 + 0.1 * np.abs(z)
        elif name.endswith(("running_mean", "bias")):
            z = 0.1 * z
        elif len(shape) == 1:
            z = 1 + 0.1 * z
        else:
            z = z / np.sqrt(np.prod(shape[1:]))
        value.copy_(torch.from_numpy(z))
    return model


@cache
def golden_model(name: str) -> ConvMLP:
    model = create_model(name).double().to(memory_format=torch.channels_last).eval()
    assert isinstance(fill_from_names(model), ConvMLP)
    return model


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['name']}-{case['size'][0]}x{case['size'][1]}"
)
def test_logits_and_dense_maps_equal_the_published_implementation(case: dict[str, Any]) -> None:
    model = golden_model(case["name"])
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, *case["size"])))
    with torch.inference_mode():
        features, maps = model.forward_intermediates(images)
        logits = model.forward_head(features)
        if max(case["size"]) < 224:
            torch.testing.assert_close(model(images), logits, rtol=0, atol=0)

    scale = logits.abs().max().item()
    ours = logits[:, [0, 499, 999]].flatten().tolist()
    assert np.abs(np.subtract(ours, case["logits"])).max() <= TOLERANCE * scale
    assert logits.norm().item() == pytest.approx(case["logits_norm"], rel=TOLERANCE)
    assert [list(m.shape) for m in maps] == [m["shape"] for m in case["maps"]]
    for ours_map, golden in zip(maps, case["maps"], strict=True):
        corner = ours_map[:, :8, :3, :3]
        assert corner.norm().item() == pytest.approx(golden["corner_norm"], rel=TOLERANCE)
        ends = [corner[0, 0, 0, 0].item(), corner[-1, -1, -1, -1].item()]
        assert ends == pytest.approx(golden["ends"], rel=TOLERANCE, abs=TOLERANCE)
        mean_std = [ours_map.mean().item(), ours_map.std(correction=0).item()]
        assert mean_std == pytest.approx(golden["mean_std"], rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("convmlp_s", 1000, 9_022_920),
        ("convmlp_m", 1000, 17_410_504),
        ("convmlp_l", 1000, 42_728_440),
        ("convmlp_s", 10, 8_515_050),
        ("convmlp_m", 100, 16_948_804),
        ("convmlp_l", 102, 42_037_878),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(name, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def published_state_dict(c: int, n: int, d: list[int], b: list[int], r: int) -> dict[str, tuple[int, ...]]:
    """Key → shape of the authors' checkpoints, from the paper's table of widths and depths."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_bn(prefix: str, i: int, shape: tuple[int, ...]) -> None:
        shapes[f"{prefix}.{i}.weight"] = shape
        for stat in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.{i + 1}.{stat}"] = shape[:1]
        shapes[f"{prefix}.{i + 1}.num_batches_tracked"] = ()

    def with_bias(key: str, *shape: int) -> None:
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = shape, shape[:1]

    for i, shape in zip((0, 3, 6), [(c // 2, 3), (c // 2, c // 2), (c, c // 2)], strict=True):
        conv_bn("tokenizer.block", i, (*shape, 3, 3))
    for j in range(n):
        for i, shape in zip((0, 3, 6), [(d[0], c, 1, 1), (d[0], d[0], 3, 3), (c, d[0], 1, 1)], strict=True):
            conv_bn(f"conv_stages.conv_blocks.{j}", i, shape)
    with_bias("conv_stages.downsample", d[0], c, 3, 3)
    for s, dim in enumerate(d):
        for j in range(b[s]):
            block = f"stages.{s}.blocks.{j}"
            for norm in ("norm1", "norm2", "connect_norm"):
                with_bias(f"{block}.{norm}", dim)
            for mlp in ("channel_mlp1", "channel_mlp2"):
                with_bias(f"{block}.{mlp}.fc1", dim * r, dim)
                with_bias(f"{block}.{mlp}.fc2", dim, dim * r)
            shapes[f"{block}.connect.weight"] = (dim, 1, 3, 3)
        if s + 1 < len(d):
            with_bias(f"stages.{s}.downsample_mlp.downsample", d[s + 1], dim, 3, 3)
    with_bias("norm", d[-1])
    with_bias("head", 1000, d[-1])
    return shapes


@pytest.mark.parametrize(
    ("name", "shape", "entries", "tensors"),
    [
        ("convmlp_s", (64, 2, [128, 256, 512], [2, 4, 2], 2), 184, 157),
        ("convmlp_m", (64, 3, [128, 256, 512], [3, 6, 3], 3), 262, 226),
        ("convmlp_l", (96, 3, [192, 384, 768], [4, 8, 3], 3), 307, 271),
    ],
)
def test_state_dict_has_the_authors_keys_and_shapes(
    name: str, shape: tuple[Any, ...], entries: int, tensors: int
) -> None:
    with torch.device("meta"):
        model = create_model(name)
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert ours == published_state_dict(*shape)
    assert len(ours) == entries
    assert len(list(model.parameters())) == tensors


def test_stochastic_depth_restarts_in_each_stage() -> None:
    with torch.device("meta"):
        model = create_model("convmlp_m")
    rates = [[getattr(b.drop_path, "drop_prob", 0.0) for b in stage.blocks] for stage in model.stages]
    expected = [[0, 0.05, 0.1], [0, 0.02, 0.04, 0.06, 0.08, 0.1], [0, 0.05, 0.1]]
    assert [pytest.approx(stage) for stage in expected] == rates
