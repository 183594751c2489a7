"""Mixup and CutMix: targets stay distributions, the draw is numpy's, odd batches are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convmlp.tasks.classification import create_mixing


def test_off_is_none() -> None:
    assert create_mixing(10, label_smoothing=0.1) is None


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)]),
    st.sampled_from([0.0, 0.1]),
)
def test_targets_are_the_share_of_each_image(
    seed: int, alphas: tuple[float, float], smoothing: float
) -> None:
    mixing = create_mixing(4, mixup=alphas[0], cutmix=alphas[1], label_smoothing=smoothing)
    assert mixing is not None
    images = torch.stack([torch.full((3, 8, 8), float(i)) for i in range(4)])
    np.random.seed(seed)
    mixed, targets = mixing(images.clone(), torch.arange(4))
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    # Image i is constant i, so the mean pixel tells the share of the partner 3 - i; so must the target.
    own_share = (mixed.mean((1, 2, 3)) - torch.tensor([3.0, 2, 1, 0])) / torch.tensor([-3.0, -1, 1, 3])
    share_in_targets = (targets.diagonal() - smoothing / 4) / (1 - smoothing)
    torch.testing.assert_close(share_in_targets, own_share, rtol=1e-4, atol=1e-4)
    np.random.seed(seed)
    again, same_targets = mixing(images.clone(), torch.arange(4))
    assert torch.equal(again, mixed)
    assert torch.equal(same_targets, targets)


def test_prob_zero_smooths_only() -> None:
    mixing = create_mixing(4, mixup=0.8, prob=0.0, label_smoothing=0.2)
    assert mixing is not None
    images = torch.randn(2, 3, 8, 8)
    mixed, targets = mixing(images.clone(), torch.tensor([1, 3]))
    assert torch.equal(mixed, images)
    torch.testing.assert_close(targets, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]]))


def test_an_odd_batch_is_refused() -> None:
    mixing = create_mixing(4, mixup=0.8)
    assert mixing is not None
    with pytest.raises(ValueError, match="even, not 3"):
        mixing(torch.randn(3, 3, 8, 8), torch.arange(3))


@pytest.mark.parametrize("options", [{"prob": 1.1}, {"mixup": -1.0}, {"switch_prob": -0.1, "cutmix": 1.0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        create_mixing(4, **options)


def shares(count: int = 300, **options: float) -> np.ndarray:
    """The smaller image's share of each of many batches of two, and whether CutMix made it: [count, 2]."""
    mixing = create_mixing(2, **options)
    assert mixing is not None
    np.random.seed(1)
    found = []
    for _ in range(count):
        mixed, targets = mixing(torch.arange(2.0).view(2, 1, 1, 1).repeat(1, 3, 16, 16), torch.arange(2))
        cut = bool(((mixed == 0) | (mixed == 1)).all()) and 0 < float(targets[0, 1]) < 1
        found.append((float(targets[0].min()), cut))
    return np.array(found)


@pytest.mark.parametrize(("mixup", "cutmix"), [(1000.0, 0.01), (0.01, 1000.0)])
def test_each_method_has_its_own_alpha(mixup: float, cutmix: float) -> None:
    """A large alpha draws shares near one half, a small one near none."""
    for switch_prob, alpha in ((0.0, mixup), (1.0, cutmix)):
        found = shares(mixup=mixup, cutmix=cutmix, switch_prob=switch_prob)[:, 0]
        if alpha > 1:  # a box that is cut off at the border takes less than its share
            assert np.median(found) > 0.2
        else:
            assert np.median(found) < 0.01


def test_as_many_batches_are_mixed_and_cut_as_was_asked_for() -> None:
    found = shares(600, mixup=1.0, cutmix=1.0, prob=0.3, switch_prob=0.2)
    mixed = found[:, 0] > 0
    assert 0.24 < mixed.mean() < 0.36
    assert 0.1 < found[mixed, 1].mean() < 0.3
