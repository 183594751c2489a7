"""What every network of this package promises: timm's interface, any size it can take, formats, precisions."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convmlp import ConvMLP, CycleMLP, Mixer, PureMLP, create_model, list_models
from convmlp.zoo import ALIASES, BASELINES, VARIANTS


def conv_mlp(num_classes: int = 7, **options: Any) -> ConvMLP:
    shape = {"stem_channels": 8, "conv_blocks": 1, "dims": (12, 16, 20), "blocks": (1, 2, 1)}
    return ConvMLP(num_classes, **{**shape, **options})  # type: ignore[arg-type]


def cycle_mlp(num_classes: int = 7, **options: Any) -> CycleMLP:
    shape = {"dims": (8, 12, 16, 20), "blocks": (1, 1, 2, 1), "mlp_ratios": (2, 2, 2, 2)}
    return CycleMLP(num_classes, **{**shape, **options})  # type: ignore[arg-type]


def mixer(num_classes: int = 7, **options: Any) -> Mixer:
    shape = {"img_size": 64, "patch_size": 16, "num_blocks": 2, "embed_dim": 16}
    model = Mixer(num_classes, **{**shape, **options})
    if isinstance(model.head, nn.Linear):  # published as zeros, through which nothing flows
        nn.init.normal_(model.head.weight)
    return model


def pure_mlp(num_classes: int = 7, **options: Any) -> PureMLP:
    shape = {"img_size": 64, "dims": (8, 12, 16), "blocks": (1, 1, 1)}
    return PureMLP(num_classes, **{**shape, **options})  # type: ignore[arg-type]


Make = Callable[..., Any]
FAMILIES = [conv_mlp, cycle_mlp, mixer, pure_mlp]
every_family = pytest.mark.parametrize("make", FAMILIES)
hierarchical = pytest.mark.parametrize("make", [conv_mlp, cycle_mlp])


def test_all_are_registered_with_timm_under_one_name_each() -> None:
    assert list_models() == list(VARIANTS)
    assert list_models(baselines=True) == [*VARIANTS, *BASELINES]
    for name in (*list_models(baselines=True), *ALIASES):
        assert timm.is_model(name), name
    with torch.device("meta"):
        for name in ("convmlp_tiny", "mixer_s32", "cyclemlp_b1", "cycle_mlp_b1", "pure_mlp_s"):
            model = timm.create_model(name, num_classes=3, drop_path_rate=0.2)
            assert isinstance(model, VARIANTS[ALIASES.get(name, name)].model)
            assert model.num_classes == 3
    assert timm.get_pretrained_cfg("cyclemlp_b1").url.endswith("CycleMLP_B1.pth")
    assert timm.get_pretrained_cfg("mixer_b16").mean == (0.5, 0.5, 0.5)


@every_family
def test_heads(make: Make) -> None:
    model = make(0).eval()
    images = torch.randn(2, 3, 64, 64)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(images).shape == (2, model.num_features)
    features = model.forward_features(images)
    torch.testing.assert_close(model(images), model.forward_head(features, pre_logits=True))
    model.double().reset_classifier(5)
    assert model.get_classifier().out_features == model.num_classes == 5
    assert model(images.double()).shape == (2, 5)
    model.reset_classifier(0)
    assert model(images.double()).shape == (2, model.num_features)
    with pytest.raises(ValueError, match="global_pool"):
        model.reset_classifier(5, "max")


@every_family
def test_feature_maps(make: Make) -> None:
    model = make().eval()
    images = torch.randn(1, 3, 64, 64)
    features, maps = model.forward_intermediates(images)
    torch.testing.assert_close(model.forward_head(features), model(images))
    assert len(maps) == len(model.feature_info)
    for info, one in zip(model.feature_info, maps, strict=True):
        side = 64 // info["reduction"]
        assert one.shape == (1, info["num_chs"], side, side)
    last = model.forward_intermediates(images, indices=[-1], norm=True, intermediates_only=True)
    flat = features.reshape(1, -1, model.num_features) if features.ndim == 3 else features.flatten(2).mT
    torch.testing.assert_close(last[0].flatten(2).mT, flat)


@every_family
def test_gradient_reaches_every_parameter(make: Make) -> None:
    torch.manual_seed(0)
    model = make(drop_path_rate=0.0)
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@every_family
def test_channels_last_and_one_image_give_the_same(make: Make) -> None:
    model = make(in_chans=4).double().eval()
    images = torch.randn(2, 4, 64, 64, dtype=torch.float64)
    expected = model(images)
    torch.testing.assert_close(model(images[1:]), expected[1:])
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected)


@every_family
def test_bf16_autocast_trains(make: Make) -> None:
    model = make().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 64, 64))
    logits.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.bfloat16().eval()(torch.randn(1, 3, 64, 64).bfloat16()).dtype == torch.bfloat16


@every_family
def test_gradient_checkpointing_gives_the_same_gradients(make: Make) -> None:
    torch.manual_seed(0)
    model = make(drop_path_rate=0.0)
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


TWO_STAGES = {"dims": (8, 12), "blocks": (1, 2), "mlp_ratios": (2, 2)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (conv_mlp, TWO_STAGES),
        pytest.param(cycle_mlp, TWO_STAGES, marks=pytest.mark.slow),
        pytest.param(mixer, {}, marks=pytest.mark.slow),
        pytest.param(pure_mlp, TWO_STAGES, marks=pytest.mark.slow),
    ],
)
def test_compiles_without_graph_breaks(make: Make, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    model = make(drop_path_rate=0.1, **options)
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(images).sum().backward()
    model.zero_grad()
    torch.testing.assert_close(compiled.eval()(images), model.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "options"), [(conv_mlp, TWO_STAGES), (cycle_mlp, TWO_STAGES), (mixer, {})])
def test_compiled_by_inductor_gives_the_same(make: Make, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    model = make(drop_path_rate=0.0, **options).eval()
    images = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True)
    gradients = []
    for network in (compiled, model):
        logits = network(images)
        gradients.append(torch.autograd.grad(logits.square().sum(), list(model.parameters())))
        torch.testing.assert_close(logits, model(images), rtol=1e-3, atol=1e-4)
    # All in one: LayerNorm makes some of Mixer's gradients zero but for rounding.
    ours, eager = (torch.cat([one.flatten() for one in each]) for each in gradients)
    assert (ours - eager).norm() <= 1e-3 * eager.norm()


@settings(max_examples=12)
@given(st.integers(32, 100), st.integers(32, 100), st.sampled_from([conv_mlp, cycle_mlp]))
def test_any_size_runs_also_odd_ones(height: int, width: int, make: Make) -> None:
    model = make().eval()
    features, maps = model.forward_intermediates(torch.randn(1, 3, height, width))
    assert model.forward_head(features).shape == (1, 7)
    # ConvMLP rounds up at each stride; CycleMLP's patch embedding to the nearest, 2 down; what follows rounds up.
    rounding = 1 if make is cycle_mlp else 3
    first = ((height + rounding) // 4, (width + rounding) // 4)
    for i, (info, one) in enumerate(zip(model.feature_info, maps, strict=True)):
        assert one.shape == (1, info["num_chs"], *(-(-side // 2**i) for side in first))


@every_family
@pytest.mark.parametrize("shape", [(2, 3, 3, 64), (2, 3, 64, 2), (2, 1, 64, 64), (3, 64, 64)])
def test_images_that_do_not_fit_are_refused(make: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs \dx\d at least: enlarge them|takes images \[B, 3"):
        make()(torch.randn(shape))


@hierarchical
def test_the_smallest_images_run(make: Make) -> None:
    model = make().eval()
    side = model.min_image_size
    assert model(torch.randn(1, 3, side, side)).shape == (1, 7)
    with pytest.raises(ValueError, match=f"{side - 1}x{side} px are too small"):
        model(torch.randn(1, 3, side - 1, side))


def test_the_image_size_is_given_once() -> None:
    assert create_model("mixer_s32", 5, image_size=64).fixed_image_size == (64, 64)
    assert create_model("pure_mlp_s", 5, image_size=(32, 64)).fixed_image_size == (32, 64)
    assert create_model("vit_tiny_patch16_224", 5, image_size=32).patch_embed.img_size == (32, 32)
    assert create_model("cyclemlp_b1", 5, image_size=33)(torch.randn(1, 3, 33, 33)).shape == (1, 5)
    with pytest.raises(ValueError, match="multiple of the patch size 32"):
        create_model("mixer_s32", image_size=48)
    with pytest.raises(ValueError, match="multiple of the patch size 32"):
        create_model("mixer_s32", image_size=16)
    with pytest.raises(ValueError, match="too small for convmlp_s, which needs 8x8"):
        create_model("convmlp_s", image_size=4)
    with pytest.raises(ValueError, match="its token-mixing weights fit one image size"):
        mixer()(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cyclemlp_b1", {"dims": (64, 128)}, "one entry per stage"),
        ("cyclemlp_b1", {"drop_path_rate": 1.0}, "drop_path_rate"),
        ("cyclemlp_b1", {"window": 3}, "window"),
        ("mixer_s32", {"gelu": "fast"}, "gelu must be"),
        ("mixer_s32", {"drop_path_rate": -0.1}, "drop_path_rate"),
        ("pure_mlp_s", {"img_size": 100}, "multiple of the patch size 32"),
        ("cyclemlp_b6", {}, "did you mean cyclemlp_b"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize("indices", [(0,), (1, 2), (0, 3)])
def test_a_cyclemlp_backbone_keeps_only_what_its_maps_need(indices: tuple[int, ...]) -> None:
    options = {"dims": (8, 12, 16, 20), "blocks": (1, 1, 1, 1)}
    full = create_model("cyclemlp_b1", features_only=True, **options).eval()
    some = create_model("cyclemlp_b1", features_only=True, out_indices=indices, **options).eval()
    some.load_state_dict({k: v for k, v in full.state_dict().items() if k in some.state_dict()})
    images = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(some(images), [full(images)[i] for i in indices], strict=True):
        torch.testing.assert_close(ours, theirs)
    some.train()(images)
    sum(one.square().mean() for one in some(images)).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in some.parameters())


def test_parameter_groups_by_layer_cover_the_model() -> None:
    from timm.models import group_parameters

    for make in FAMILIES:
        model = make()
        for coarse in (False, True):
            groups = group_parameters(model, model.group_matcher(coarse))
            assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))
            assert len(groups) > 3
