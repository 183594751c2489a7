"""Multiply-accumulates are those of the papers, under their definition."""

import pytest
import torch
from golden_models import on_meta

from convmlp import ConvMLP, create_model
from convmlp.model_cost import count_macs, count_parameters

# (convolutions and matrix products alone, as fvcore counts), measured on the authors' code; the papers round the
# second: 2.4, 3.9, 9.9 G for ConvMLP, 2.1, 3.9, 6.9, 10.1, 12.3 G for CycleMLP.
PUBLISHED = {
    "convmlp_s": (2_385_327_104, 2_399_451_648),
    "convmlp_m": (3_928_765_952, 3_948_284_416),
    "convmlp_l": (9_869_797_632, 9_903_591_168),
    "mixer_s32": (1.0024e9, 1.0046e9),
    "mixer_s16": (3.7770e9, 3.7855e9),
    "mixer_b32": (3.2377e9, 3.2424e9),
    "mixer_b16": (12.6018e9, 12.6206e9),
    "mixer_l32": (11.2533e9, 11.2656e9),
    "mixer_l16": (44.5477e9, 44.5969e9),
    "mixer_h14": (120.990e9, 121.096e9),
    "cyclemlp_b1": (2.1215e9, 2.1307e9),
    "cyclemlp_b2": (3.8758e9, 3.8899e9),
    "cyclemlp_b3": (6.8310e9, 6.8532e9),
    "cyclemlp_b4": (10.0272e9, 10.0590e9),
    "cyclemlp_b5": (12.2324e9, 12.2669e9),
}
BASELINES = {
    "resnet18": 1.814e9,
    "resnet50": 4.089e9,
    "regnety_008": 0.797e9,
    "vit_tiny_patch16_224": 1.254e9,
}


LARGE = {"mixer_l32", "mixer_l16", "mixer_h14", "cyclemlp_b3", "cyclemlp_b4", "cyclemlp_b5"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in PUBLISHED]
)
def test_macs_at_224_are_the_published_ones(name: str) -> None:
    exactly, as_fvcore = PUBLISHED[name]
    macs = count_macs(on_meta(name))
    assert macs == pytest.approx(exactly, rel=0 if isinstance(exactly, int) else 1e-4)
    assert macs == pytest.approx(as_fvcore, rel=0.01)


@pytest.mark.parametrize("name", BASELINES)
def test_macs_of_the_baselines(name: str) -> None:
    assert count_macs(on_meta(name)) == pytest.approx(BASELINES[name], rel=1e-3)


def test_macs_at_other_sizes() -> None:
    cycle = on_meta("cyclemlp_b1", num_classes=10)
    assert count_macs(cycle, 32) == pytest.approx(44.43e6, rel=0.01)
    assert count_macs(cycle, 96) == pytest.approx(392.1e6, rel=0.01)
    assert count_macs(on_meta("convmlp_s"), 32) == pytest.approx(48.96e6, rel=0.01)
    assert count_macs(on_meta("mixer_s16", num_classes=10, image_size=96), 96) == pytest.approx(
        693.6e6, rel=0.01
    )
    assert count_macs(cycle, (64, 32), batch_size=3) == count_macs(cycle, (32, 64))


def test_counting_leaves_the_model_alone() -> None:
    model = create_model("convmlp_tiny", 10).half()
    model.tokenizer.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert count_macs(model, 32) > 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parameters() -> None:
    model = ConvMLP(10)
    assert count_parameters(model) == 8_515_050
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    assert count_parameters(model, trainable_only=True) == 5130
