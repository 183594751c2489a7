"""What is particular to ConvMLP as a timm model; test_model_families.py has what all networks promise."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convmlp import ConvMLP, create_model

SMALL = {"stem_channels": 8, "conv_blocks": 1, "dims": (12, 16, 20), "blocks": (1, 2, 1)}


def small(num_classes: int = 7, **kwargs: object) -> ConvMLP:
    return ConvMLP(num_classes, **{**SMALL, **kwargs})  # type: ignore[arg-type]


def test_any_timm_model_can_be_made() -> None:
    with torch.device("meta"):
        model = create_model("resnet18", 10)
    assert sum(p.numel() for p in model.parameters()) == 11_181_642


def test_tiny_is_tiny() -> None:
    parameters = sum(p.numel() for p in create_model("convmlp_tiny", 10).parameters())
    assert 700_000 < parameters < 900_000


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("convmlp_x", "convmlp_s"), ("resnet_18", "resnet18"), ("convmlp_s.x", "convmlp_s")],
)
def test_unknown_name_offers_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=nearest):
        create_model(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "depth"),
        ({"dims": (64, 128)}, "one entry per stage"),
        ({"stem_stride": 3}, "stem_stride"),
        ({"stem_channels": 33}, "even"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("convmlp_tiny", **options)


def test_features_only_gives_the_published_strides_and_channels() -> None:
    backbone = timm.create_model("convmlp_s", features_only=True)
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    assert backbone.feature_info.channels() == [64, 128, 256, 512]
    assert backbone.feature_info.module_name() == ["tokenizer", "conv_stages", "stages.0", "stages.2"]
    assert sum(p.numel() for p in backbone.parameters()) == 8_508_896  # neither final norm nor head
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, 64, 16, 24),
        (1, 128, 8, 12),
        (1, 256, 4, 6),
        (1, 512, 2, 3),
    ]


@pytest.mark.parametrize("indices", [(0,), (1, 2), (-1,), (0, 3)])
def test_features_only_of_some_levels_drops_what_is_not_needed(indices: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    full = timm.create_model("convmlp_tiny", features_only=True).eval()
    some = timm.create_model("convmlp_tiny", features_only=True, out_indices=indices).eval()
    some.load_state_dict({k: v for k, v in full.state_dict().items() if k in some.state_dict()})
    images = torch.randn(1, 3, 64, 64)
    expected = [full(images)[i] for i in indices]
    for ours, theirs in zip(some(images), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(some.state_dict()) <= len(full.state_dict())


def test_stem_stride_two_halves_every_reduction() -> None:
    model = small(stem_stride=2).eval()
    maps = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    reductions = [info["reduction"] for info in model.feature_info]
    assert reductions == [2, 4, 8, 16]
    assert [32 // m.shape[-1] for m in maps] == reductions
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 80), st.integers(32, 80), st.sampled_from([2, 4]), st.integers(2, 4))
def test_any_size_runs_and_strides_round_up(height: int, width: int, stem: int, stages: int) -> None:
    shape = {"dims": (12, 16, 20, 24)[:stages], "blocks": (1,) * stages, "mlp_ratios": (2,) * stages}
    model = small(stem_stride=stem, **shape).eval()
    images = torch.randn(1, 3, height, width)
    features, maps = model.forward_intermediates(images)
    assert model(images).shape == (1, 7)
    torch.testing.assert_close(model.forward_head(features), model(images))
    for info, feature_map in zip(model.feature_info, maps, strict=True):
        stride = info["reduction"]
        assert feature_map.shape == (1, info["num_chs"], -(-height // stride), -(-width // stride))


def test_channels_last_gives_the_same_and_copies_nothing() -> None:
    model = small(in_chans=4).double().eval()
    images = torch.randn(2, 4, 64, 64, dtype=torch.float64)
    expected = model(images)
    model = model.to(memory_format=torch.channels_last)
    inputs: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.LayerNorm):
            module.register_forward_pre_hook(lambda module, args: inputs.append((module, args[0])))
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected)
    for module, x in inputs:
        wanted = torch.channels_last if isinstance(module, nn.Conv2d) else torch.contiguous_format
        assert x.is_contiguous(memory_format=wanted)
