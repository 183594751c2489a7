"""Our layers, transforms and descriptions behave as timm's, which are left out because their import takes seconds."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.models._features import feature_take_indices
from torch import nn

from convmlp.models.layers import DropPath, Mlp, height_width, take_indices
from convmlp.optim import OPTIMIZERS, check_optimizer, create_optimizer
from convmlp.transforms.image_transforms import EvalTransform, check_augmentation
from convmlp.zoo import ALIASES, VARIANTS, create_model


@given(rate=st.floats(0, 0.95), rank=st.integers(1, 4), training=st.booleans(), seed=st.integers(0, 99))
def test_stochastic_depth_draws_as_timms(rate: float, rank: int, training: bool, seed: int) -> None:
    x = torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(seed)).flatten(rank - 1)
    outputs = []
    for layer in (DropPath(rate).train(training), timm.layers.DropPath(rate).train(training)):
        torch.manual_seed(seed)
        outputs.append((layer(x), torch.rand(1)))
    assert torch.equal(outputs[0][0], outputs[1][0]) and outputs[0][1] == outputs[1][1]


@pytest.mark.parametrize("out", [None, 7])
def test_the_mlp_is_timms(out: int | None) -> None:
    torch.manual_seed(0)
    ours = Mlp(6, 12, out)
    torch.manual_seed(0)
    theirs = timm.layers.Mlp(6, 12, out)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 6)
    assert torch.equal(ours.train()(x), theirs.train()(x))
    assert height_width(3) == timm.layers.to_2tuple(3) and height_width((3, 4)) == (3, 4)


@given(
    count=st.integers(1, 6),
    indices=st.none() | st.integers(-1, 7) | st.lists(st.integers(-7, 7), min_size=1, max_size=4),
)
def test_feature_maps_are_chosen_as_timm_does(count: int, indices: Any) -> None:
    try:
        expected = feature_take_indices(count, indices)
    except AssertionError:
        with pytest.raises(ValueError, match="feature maps"):
            take_indices(count, indices)
    else:
        assert take_indices(count, indices) == expected


@given(
    width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(4, 40), crop_pct=st.floats(0.5, 1.3),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)  # fmt: skip
def test_the_evaluation_transform_is_timms(
    width: int, height: int, size: int, crop_pct: float, interpolation: str
) -> None:
    if max(width, height) > 8 * min(width, height):
        return  # of these only the middle is resized
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    ours = EvalTransform(
        size, mean=(0.5,) * 3, std=(0.2,) * 3, crop_pct=crop_pct, interpolation=interpolation
    )
    timms = create_transform(
        size, is_training=False, crop_pct=crop_pct, interpolation=interpolation, normalize=False
    )
    assert torch.equal(ours._pixels(image), timms(image))


SPECS = st.lists(
    st.sampled_from(["m9", "m", "m0.5", "n2", "nx", "p0.5", "p1", "mstd0.5", "mstd101", "mmax10", "mmax1.5", "inc1",
                     "incx", "t3a", "tweights", "tany", "x1", "w0", "", "9", "m9.", "inc0"]),
    max_size=4,
)  # fmt: skip


@given(SPECS)
def test_a_rand_augment_specification_is_refused_where_timm_refuses_it(sections: list[str]) -> None:
    spec = "-".join(["rand", *sections])
    options: dict[str, Any] = {"crop": "none", "pad": 0, "interpolation": "bilinear"}
    try:
        rand_augment_transform(spec, {"translate_const": 10, "img_mean": (1, 1, 1)})
    except (ValueError, AssertionError):
        with pytest.raises(ValueError, match="rand_augment"):
            check_augmentation(32, rand_augment=spec, **options)
    else:
        check_augmentation(32, rand_augment=spec, **options)


@given(
    name=st.sampled_from([*OPTIMIZERS, "adagrad"]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "betas": st.tuples(*[st.sampled_from([0.0, 0.9, 1.0])] * 2),
            "eps": st.just(1e-8),
            "momentum": st.sampled_from([0.0, 0.9, 1.0]),
        },
    ),
)
def test_an_optimizer_is_refused_before_it_is_made(name: str, options: dict[str, Any]) -> None:
    try:
        check_optimizer(name=name, **options)
    except ValueError:
        with pytest.raises(ValueError):
            create_optimizer(nn.Linear(2, 2), name=name, lr=0.1, weight_decay=0.1, **options)
    else:
        create_optimizer(nn.Linear(2, 2), name=name, lr=0.1, weight_decay=0.1, **options)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_what_is_refused_before_is_refused_by_torch(kind: Any) -> None:
    """Otherwise `check_optimizer` would forbid what works."""
    options = {"momentum": 0, "nesterov": True} if kind is torch.optim.SGD else {"betas": (0.9, 1.0)}
    with pytest.raises(ValueError):
        kind(nn.Linear(2, 2).parameters(), lr=0.1, **options)


@pytest.mark.parametrize("name", ["convmlp_tiny", "cyclemlp_b1", "cycle_mlp_b1", "mixer_s32", "pure_mlp_s"])
def test_a_model_made_without_timm_is_the_one_that_timm_makes(name: str) -> None:
    models = []
    for make in (create_model, timm.create_model):
        torch.manual_seed(1)
        models.append(make(name, num_classes=3, drop_path_rate=0.1))
    ours, theirs = models
    assert type(ours) is type(theirs) is VARIANTS[ALIASES.get(name, name)].model
    assert str(ours) == str(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert ours.pretrained_cfg.items() <= theirs.pretrained_cfg.items()
    assert {key for key in theirs.pretrained_cfg if key not in ours.pretrained_cfg} <= {
        "custom_load", "crop_mode", "pool_size",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("first", ["timm", "convmlp"])
def test_timm_knows_our_networks_whichever_is_imported_first(first: str) -> None:
    second = {"timm": "convmlp", "convmlp": "timm"}[first]
    code = f"import {first}; import sys; early = 'timm' in sys.modules; import {second}, timm; " \
        "assert timm.is_model('convmlp_s') and timm.is_model('mixer_b16'); print(early)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(first == "timm")
