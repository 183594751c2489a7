"""The moving average is the weighted mean of the weights after each update, and of nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.engine.ema import WeightAverage


@given(
    decay=st.sampled_from([0.5, 0.9, 0.998, 0.99996]),
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30),
    initial=st.floats(-1e6, 1e6, width=32),
)
def test_it_is_the_weighted_mean_without_the_initial_weights(
    decay: float, values: list[float], initial: float
) -> None:
    weight = torch.tensor([initial], dtype=torch.float64)
    average = WeightAverage(decay, {"w": weight})
    for count, value in enumerate(values, 1):
        weight.fill_(value)
        average.update({"w": weight}, count)
    shares = [decay ** (len(values) - place) for place in range(1, len(values) + 1)]
    wanted = sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares)
    assert average.tensors["w"].item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_after_one_update_it_is_the_weights() -> None:
    weight = torch.randn(100)
    average = WeightAverage(0.99996, {"w": torch.randn(100)})
    average.update({"w": weight}, 1)
    assert torch.equal(average.tensors["w"], weight)


def test_in_a_long_run_it_is_the_authors() -> None:
    """375,300 updates are the paper's 300 epochs; the authors' average begins with the initial weights."""
    updates, decay = 375_300, 0.99996
    share = (1 - decay) / -math.expm1(updates * math.log(decay))
    assert share == pytest.approx(1 - decay, rel=4e-7)
