"""The learning rate: hand values, bounds, monotone parts, continuity."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("constant", 950, 1.0),
    ],
)
def test_hand_values(name: Any, samples_seen: int, expected: float) -> None:
    assert lr_at(samples_seen, name=name, **RUN) == pytest.approx(expected, rel=1e-12)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    total = draw(st.integers(1, 10**10))
    warmup = draw(st.integers(0, total))
    low, high = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    return {
        "name": draw(st.sampled_from(["cosine", "linear", "constant"])),
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
    # No step of one sample changes the rate by more than the steepest slope: pi/2 of the linear one.
    steepest = (
        run["base_lr"] * 1.5708 / max(1, min(n for n in (run["warmup_samples"], decay, 10**11) if n > 0))
    )
    change = abs(lr_at(samples + 1, **run) - lr_at(samples, **run))
    if decay > 0 or samples + 1 < run["warmup_samples"]:  # without a decay part the rate drops to min_lr
        assert change <= steepest + 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "step"}, "step"),
        ({"warmup_samples": 950}, "exceed the whole run"),
        ({"cooldown_samples": -1}, "negative"),
    ],
)
def test_bad_schedules_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lr_at(0, **{**RUN, **change})
