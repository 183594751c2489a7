"""Optimizers: timm's rule of what is decayed, no empty groups, clear refusals."""

from typing import Any

import pytest
import torch
from torch import nn

from convmlp import create_model
from convmlp.optim import OPTIMIZERS, create_optimizer
from convmlp.tasks.classification import ClassificationTask


def test_convmlp_s_leaves_biases_and_norms_undecayed() -> None:
    task = ClassificationTask(create_model("convmlp_s"), num_classes=1000)
    optimizer = create_optimizer(task, name="adamw", lr=5e-4, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8)
    groups = {group["weight_decay"]: group["params"] for group in optimizer.param_groups}
    assert set(groups) == {0.0, 0.05}
    assert len(groups[0.0]) == 104
    assert sum(p.numel() for p in groups[0.0]) == 32_104
    assert len(groups[0.05]) == 157 - 104
    assert all(p.ndim > 1 for p in groups[0.05])


def test_decay_of_all_is_one_group() -> None:
    task = ClassificationTask(create_model("convmlp_tiny", 10), num_classes=10)
    optimizer = create_optimizer(task, name="adamw", lr=1e-4, weight_decay=1e-4, decay="all")
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 1e-4
    assert len(group["params"]) == len(list(task.parameters()))


def test_what_the_model_excludes_is_excluded_through_the_task() -> None:
    model = create_model("vit_tiny_patch16_224", 10, img_size=32)
    task = ClassificationTask(model, num_classes=10)
    assert "model.pos_embed" in task.no_weight_decay()
    optimizer = create_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.05)
    decayed = next(group["params"] for group in optimizer.param_groups if group["weight_decay"] > 0)
    assert all(model.pos_embed is not parameter for parameter in decayed)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("model", ["convmlp_tiny", "vit_tiny_patch16_224"])
def test_groups_and_options_are_those_that_timm_makes(name: str, weight_decay: float, model: str) -> None:
    import timm.optim

    given = create_model(model, 10, **({"img_size": 32} if model.startswith("vit") else {}))
    own = create_optimizer(given, name=name, lr=0.1, weight_decay=weight_decay)
    timms = timm.optim.create_optimizer_v2(given, name, lr=0.1, weight_decay=weight_decay)
    for mine, other in zip(own.param_groups, timms.param_groups, strict=True):
        assert list(map(id, mine.pop("params"))) == list(map(id, other.pop("params")))
        assert mine | {"fused": None} == other | {"fused": None}


@pytest.mark.parametrize("model", [nn.Linear(2, 2, bias=False), nn.LayerNorm(2), nn.Linear(2, 2)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_no_group_is_empty_and_no_parameter_is_lost(model: nn.Module, weight_decay: float) -> None:
    optimizer = create_optimizer(model, name="sgd", lr=0.1, weight_decay=weight_decay)
    assert all(group["params"] for group in optimizer.param_groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss_with_state_of_the_parameters_shape(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = create_optimizer(model, name=name, lr=1e-2, weight_decay=1e-4)
    x, losses = torch.randn(64, 4), []
    for _ in range(30):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for parameter, state in optimizer.state.items():
        assert all(v.shape in (parameter.shape, ()) for v in state.values() if isinstance(v, torch.Tensor))


def test_options_reach_the_optimizer() -> None:
    model = nn.Linear(2, 2)
    adamw = create_optimizer(model, name="adamw", lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.8, 0.9), 1e-6)
    sgd = create_optimizer(model, name="sgd", lr=0.1, weight_decay=0.0, momentum=0.8)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    plain = create_optimizer(model, name="momentum", lr=0.1, weight_decay=0.0)
    assert (plain.defaults["momentum"], plain.defaults["nesterov"]) == (0.9, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamww"}, "adamww.*adamw"),
        ({"name": "adamw", "decay": "none"}, "decay"),
        ({"name": "sgd", "betas": (0.9, 0.99)}, "does not take betas"),
        ({"name": "adamw", "momentum": 0.9}, "does not take momentum"),
    ],
)
def test_bad_requests_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_optimizer(nn.Linear(2, 2), lr=1e-3, weight_decay=0.0, **options)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "momentum"])
def test_torchs_own_optimizers_update_all_parameters_by_one_kernel(name: str) -> None:
    optimizer = create_optimizer(nn.Linear(3, 2), name=name, lr=0.1, weight_decay=0.0)
    assert optimizer.defaults["fused"] is True
