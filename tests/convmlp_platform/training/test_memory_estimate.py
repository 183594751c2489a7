"""What `convmlp check` says a worker needs: exact where it says so."""

from __future__ import annotations

from typing import Any

import pytest

from convmlp_platform.config.load import parse_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.training.preflight.memory import MemoryEstimate, build_on_meta, estimate_memory

# ConvMLP-S with 1,000 classes: parameters as published; 9 BatchNorms hold mean, variance and a counter each.
PARAMETERS = 9_022_920


def estimate(**sections: dict[str, Any]) -> MemoryEstimate:
    return estimate_memory(job(**sections), num_classes=1000)


def job(**sections: dict[str, Any]) -> TrainJob:
    values: dict[str, Any] = {
        "kind": "train",
        "name": "x",
        "model": {"name": "convmlp_s"},
        "data": {"path": "d", "image_size": 64},
        "optimizer": {"lr": 1},
        "training": {"epochs": 1, "global_batch_size": 64, "micro_batch_size": 16},
        "launch": {"num_workers": 4},
    }
    for name, fields in sections.items():
        values[name] = values.get(name, {}) | fields
    parsed = parse_job(values, "x")
    assert isinstance(parsed, TrainJob)
    return parsed


BUFFERS = sum(buffer.numel() for buffer in build_on_meta(job(), 1000).buffers())


@pytest.mark.parametrize(
    ("engine", "tensors_per_parameter"),
    [
        ({"strategy": "ddp"}, 4),  # weights, gradients, two moments of AdamW
        ({"strategy": "deepspeed", "zero_stage": 1}, 2 + 2 / 4),
        ({"strategy": "deepspeed", "zero_stage": 2}, 1 + 3 / 4),
        ({"strategy": "deepspeed", "zero_stage": 3}, 4 / 4),
        ({"strategy": "fsdp"}, 4 / 4),
    ],
)
def test_states_are_divided_as_the_strategy_divides_them(
    engine: dict[str, Any], tensors_per_parameter: float
) -> None:
    found = estimate(engine=engine)
    assert found.num_parameters == PARAMETERS
    assert found.states == int(4 * (tensors_per_parameter * PARAMETERS + BUFFERS))


def test_optimizer_and_average_count() -> None:
    assert estimate(optimizer={"name": "sgd"}).states == 4 * (3 * PARAMETERS + BUFFERS)
    assert estimate(training={"ema_decay": 0.9}).states == 4 * (5 * PARAMETERS + 2 * BUFFERS)


def test_activations_grow_with_micro_batch_and_image() -> None:
    small, large = estimate(), estimate(training={"micro_batch_size": 32, "global_batch_size": 128})
    assert large.activations == 2 * small.activations
    assert estimate(engine={"precision": "bf16"}).activations == small.activations // 2
    assert 3.5 < estimate(data={"image_size": 128}).activations / small.activations < 4.5


def test_a_wrong_model_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="convmlp_s"):
        estimate(model={"name": "convmlp_ss"})


def test_a_detector_keeps_the_maps_of_its_head_and_of_a_wide_image() -> None:
    model = {"name": "convmlp_tiny"}
    data = {"path": "d", "image_size": 64}
    square = estimate(
        task={"name": "retinanet", "pyramid_channels": 32, "max_side": 64}, model=model, data=data
    )
    wide = estimate(
        task={"name": "retinanet", "pyramid_channels": 32, "max_side": 128}, model=model, data=data
    )
    backbone = estimate(model=model, data=data)
    assert square.activations > backbone.activations
    # 64 x 102 pixels; maps of a few cells are rounded up
    assert 1.4 < wide.activations / square.activations < 1.8


def test_sharded_strategies_hold_whole_tensors_for_a_while() -> None:
    def passing(strategy: str, **engine: Any) -> int:
        return estimate(engine={"strategy": strategy, **engine}).passing

    assert passing("ddp") == 0
    assert passing("deepspeed", zero_stage=2) == 4 * PARAMETERS  # the buffer of gradients
    assert passing("deepspeed", zero_stage=2, precision="bf16") == 2 * 4 * PARAMETERS  # one for each type
    assert passing("deepspeed", zero_stage=3) == 4 * 2 * PARAMETERS

    # Of FSDP's blocks the last stage's are the largest, two of a kind: a block, the gradients of both, a smaller one of
    # the stage before. What is in none are downsamplings, tokenizer, norm and head, whole with their gradients.
    def block(width: int) -> int:
        return 2 * (2 * width * 2 * width + 2 * width + width) + 3 * 2 * width + 9 * width

    rest = PARAMETERS - 2 * block(512) - 4 * block(256) - 2 * block(128) - 2 * CONV_BLOCK
    assert passing("fsdp") == 4 * (2 * rest + 3 * block(512) + block(256))


CONV_BLOCK = 2 * 64 * 128 + 9 * 128 * 128 + 2 * (128 + 128 + 64)
"""1x1, 3x3, 1x1 and their norms."""


def test_copies_of_weights_count() -> None:
    largest = 9 * 256 * 512  # of the last downsampling
    assert estimate().copies == 3 * 4 * largest
    matrices = sum(p.numel() for p in build_on_meta(job(), 1000).parameters() if p.ndim > 1)
    assert estimate(engine={"precision": "bf16"}).copies == 2 * matrices + 3 * 2 * largest
