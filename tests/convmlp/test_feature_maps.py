"""Feature maps of every family, finest first, from a network's own weights or a whole detector's."""

from __future__ import annotations

import pytest
import torch

from convmlp.feature_maps import create_feature_extractor, stage_maps
from convmlp.tasks.heads import create_dense_model
from convmlp.zoo import create_model

IMAGE = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "strides", "options"),
    [
        ("convmlp_tiny", [4, 8, 16, 32], {}),
        ("cyclemlp_b1", [4, 8, 16, 32], {}),
        ("pure_mlp_s", [8, 16, 32], {}),
        ("resnet18", [4, 8, 16, 32], {}),
        ("mixer_s16", [16] * 4, {"num_blocks": 6}),
        ("vit_tiny_patch16_224", [16] * 4, {}),
    ],
)
def test_maps_of_every_family(name: str, strides: list[int], options: dict[str, int]) -> None:
    maps = stage_maps(create_feature_extractor(name, image_size=64, **options), IMAGE)
    assert [one.stride for one in maps] == strides
    for one in maps:
        assert one.values.shape[1:] == (64 // one.stride, 64 // one.stride)
        assert one.values.isfinite().all()
    if name == "mixer_s16":
        assert [one.layer for one in maps] == ["blocks.1", "blocks.2", "blocks.3", "blocks.5"]


def test_weights_are_the_ones_given_also_out_of_a_detector() -> None:
    model = create_model("convmlp_tiny", num_classes=3).eval()
    maps = stage_maps(create_feature_extractor("convmlp_tiny", weights=model.state_dict()), IMAGE)
    with torch.inference_mode():
        wanted = model.forward_intermediates(IMAGE[None], intermediates_only=True)
    for one, values in zip(maps, wanted, strict=True):
        assert torch.equal(one.values, values[0])
    detector = create_dense_model("retinanet", "convmlp_tiny", 3, pyramid_channels=16).eval()
    maps = stage_maps(create_feature_extractor("convmlp_tiny", weights=detector.state_dict()), IMAGE)
    with torch.inference_mode():
        inside = detector.backbone.body(IMAGE[None])  # type: ignore[operator,union-attr]
    for mine, values in zip(maps[1:], inside, strict=True):
        assert torch.equal(mine.values, values[0])


def test_what_has_no_maps_is_refused() -> None:
    with pytest.raises(ValueError, match="no model is named 'convmpl_s'"):
        create_feature_extractor("convmpl_s")
