"""The learning rate: hand values, bounds, monotone parts, continuity, and what other libraries' schedulers give."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler

from convmlp.schedule import lr_at

RUN: dict[str, Any] = {
    "base_lr": 1.0,
    "total_samples": 1000,
    "warmup_samples": 100,
    "warmup_lr": 0.1,
    "min_lr": 0.2,
    "cooldown_samples": 100,
}


@pytest.mark.parametrize(
    ("name", "samples_seen", "expected"),
    [
        ("cosine", 0, 0.1),
        ("cosine", 50, 0.55),
        ("cosine", 100, 1.0),
        ("cosine", 300, 0.2 + 0.8 * (1 + 0.5**0.5) / 2),
        ("cosine", 500, 0.6),
        ("cosine", 900, 0.2),
        ("cosine", 5000, 0.2),
        ("linear", 300, 0.8),
        ("linear", 500, 0.6),
        ("linear", 900, 0.2),
        ("constant", 50, 0.55),
        ("poly", 300, 0.2 + 0.8 * 0.75**2),
        ("poly", 500, 0.2 + 0.8 * 0.5**2),
        ("poly", 900, 0.2),
        ("step", 99, 0.991),
        ("step", 299, 1.0),
        ("step", 300, 0.5),
        ("step", 700, 0.25),
        ("step", 999, 0.2),
        ("constant", 50, 0.55),
        ("constant", 950, 1.0),
    ],
)
def test_hand_values(name: Any, samples_seen: int, expected: float) -> None:
    found = lr_at(samples_seen, name=name, power=2.0, milestones=(300, 700, 950), gamma=0.5, **RUN)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("prefix", [False, True])
def test_by_epoch_it_is_timms_cosine(prefix: bool) -> None:
    """30 epochs of 1,000 samples, 5 of warm-up; timm with warmup_prefix runs these on top, ours never."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    timms = CosineLRScheduler(
        optimizer, 30, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-4, warmup_prefix=prefix
    )
    total = (35 if prefix else 30) + 4
    for epoch in range(total):
        (wanted,) = timms._get_lr(epoch)
        for samples in (0, 1, 999):
            found = lr_at(
                1000 * epoch + samples,
                base_lr=5e-4,
                total_samples=1000 * total,
                warmup_samples=5000,
                warmup_lr=1e-4,
                min_lr=1e-5,
                cooldown_samples=4000,
                decay_from="warmup" if prefix else "start",
                moves_every=1000,
            )
            assert found == pytest.approx(wanted, rel=1e-12)


def test_by_epoch_it_is_torchs_cosine_annealing() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for epoch in range(100):
        found = lr_at(70 * epoch + 69, base_lr=1e-3, total_samples=7000, moves_every=70)
        assert found == pytest.approx(torchs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        torchs.step()


def test_a_delay_holds_the_first_rate_and_moves_all_else() -> None:
    for samples in range(0, 1000, 7):
        late = lr_at(samples + 130, delay_samples=130, **RUN)
        assert late == lr_at(samples, **RUN)
    assert {lr_at(samples, delay_samples=130, **RUN) for samples in range(130)} == {0.1}


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    total = draw(st.integers(1, 10**10))
    warmup = draw(st.integers(0, total))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return {
        "name": draw(st.sampled_from(["cosine", "linear", "poly", "constant"])),
        "power": draw(st.floats(1, 3)),
        "base_lr": high,
        "min_lr": low,
        "warmup_lr": draw(st.floats(0, 1)) * high,
        "total_samples": total,
        "warmup_samples": warmup,
        "cooldown_samples": draw(st.integers(0, total - warmup)),
    }


@given(runs(), st.tuples(st.floats(0, 1.2), st.floats(0, 1.2)))
def test_bounded_rising_in_warmup_falling_after(run: dict[str, Any], where: tuple[float, float]) -> None:
    early, late = sorted(int(fraction * run["total_samples"]) for fraction in where)
    lr_early, lr_late = lr_at(early, **run), lr_at(late, **run)
    slack = 1e-12
    for lr in (lr_early, lr_late):
        assert min(run["warmup_lr"], run["min_lr"]) - slack <= lr <= run["base_lr"] + slack
    if late < run["warmup_samples"]:
        assert lr_early <= lr_late + slack
    elif early >= run["warmup_samples"]:
        assert lr_late <= lr_early + slack


@given(runs(), st.floats(0, 1.1))
def test_continuous(run: dict[str, Any], where: float) -> None:
    samples = int(where * run["total_samples"])
    decay = run["total_samples"] - run["warmup_samples"] - run["cooldown_samples"]
    # No step of one sample changes the rate by more than the steepest slope: pi/2, or the power, of the linear one.
    steepest = (
        run["base_lr"]
        * max(1.5708, run["power"])
        / max(1, min(n for n in (run["warmup_samples"], decay, 10**11) if n > 0))
    )
    change = abs(lr_at(samples + 1, **run) - lr_at(samples, **run))
    if decay > 0 or samples + 1 < run["warmup_samples"]:  # without a decay part the rate drops to min_lr
        assert change <= steepest + 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "steps"}, "steps"),
        ({"decay_from": "end"}, "decay_from"),
        ({"moves_every": 0}, "moves_every"),
        ({"warmup_samples": 950}, "exceed the whole run"),
        ({"cooldown_samples": -1}, "negative"),
    ],
)
def test_bad_schedules_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lr_at(0, **{**RUN, **change})
