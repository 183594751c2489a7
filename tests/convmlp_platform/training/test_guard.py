"""The guard's ladder, as a function of numbers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.config.sections.resilience import GuardSection
from convmlp_platform.errors import CheckpointError
from convmlp_platform.training.guard.guard import Action, Guard, Rollbacks

NAN = math.nan


def verdicts(guard: Guard, step: int, loss: float, norm: float = 1.0) -> list[Action]:
    """What the guard says of a step that is the same when computed again."""
    first = guard.judge(step, loss, norm).action
    return [first] if first is Action.ACCEPT else [first, guard.judge(step, loss, norm, again=True).action]


def test_the_ladder_of_a_step_that_stays_wrong() -> None:
    guard = Guard(GuardSection(max_skips=2, max_rollbacks=1))
    assert verdicts(guard, 7, 1.0) == [Action.ACCEPT]
    assert verdicts(guard, 8, NAN) == [Action.RECOMPUTE, Action.SKIP]
    assert verdicts(guard, 9, 1.0, math.inf) == [Action.RECOMPUTE, Action.SKIP]
    assert verdicts(guard, 10, NAN) == [Action.RECOMPUTE, Action.ROLLBACK]
    assert guard.first_bad == 8
    guard.rolled_back(10)
    guard.load({}, 6)
    assert [verdicts(guard, step, NAN)[-1] for step in (8, 9, 10)] == [Action.SKIP, Action.SKIP, Action.STOP]
    assert (guard.skipped, guard.recomputed, guard.rollbacks.total) == (4, 6, 1)


@pytest.mark.parametrize(
    ("policy", "expected"), [("skip", Action.SKIP), ("rollback", Action.ROLLBACK), ("stop", Action.STOP)]
)
def test_each_policy_begins_where_it_says(policy: Any, expected: Action) -> None:
    guard = Guard(GuardSection(on_non_finite=policy, on_spike=policy, spike_window=2))
    assert verdicts(guard, 0, NAN)[-1] is expected
    guard = Guard(GuardSection(on_spike=policy, spike_window=2))
    assert [verdicts(guard, step, loss)[-1] for step, loss in enumerate((1.0, 1.0, 3.1))] == [
        Action.ACCEPT, Action.ACCEPT, expected,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("window", "loss", "expected"),
    [
        ((1.0, 2.9, 1.0), 3.1, Action.SKIP),  # the median's three times, not the mean's or the largest's
        ((2.0, 1.0, 2.0), 5.9, Action.ACCEPT),  # not the smallest's
        ((1.0, 1.0, 1.0), 3.0, Action.ACCEPT),  # at the limit it is none
        ((1.0, 1.0), 99.0, Action.ACCEPT),  # too few to know what is usual
        ((0.1, 0.1, 0.1, 2.0, 2.0, 2.0), 5.9, Action.ACCEPT),  # only the newest count
    ],
)
def test_a_spike_is_more_than_the_factor_times_the_median_of_the_newest(
    window: tuple[float, ...], loss: float, expected: Action
) -> None:
    guard = Guard(GuardSection(on_spike="skip", spike_window=3, spike_factor=3.0))
    guard.load({"losses": window}, 0)
    assert verdicts(guard, 9, loss)[-1] is expected


def test_a_loss_that_was_refused_is_not_usual() -> None:
    guard = Guard(GuardSection(on_spike="skip", spike_window=1, spike_factor=3.0))
    assert [verdicts(guard, step, loss)[-1] for step, loss in enumerate((1.0, 9.0, 9.0))] == [
        Action.ACCEPT, Action.SKIP, Action.SKIP,
    ]  # fmt: skip


def test_each_kind_of_fault_has_its_own_policy() -> None:
    section = GuardSection(on_spike="stop", on_non_finite="skip", spike_window=1)
    for loss, expected in ((NAN, Action.SKIP), (99.0, Action.STOP)):
        guard = Guard(section)
        guard.load({"losses": [1.0]}, 0)
        assert verdicts(guard, 3, loss)[-1] is expected


def test_a_second_rollback_gets_behind_the_furthest_bad_step() -> None:
    """Past an earlier step nothing is forgiven; past the furthest it is, whether trained or loaded."""
    section = GuardSection(on_non_finite="rollback", max_rollbacks=2)
    guard = Guard(section)
    guard.rolled_back(9)
    guard.rolled_back(5)
    assert (guard.rollbacks.in_row, guard.rollbacks.step, guard.rollbacks.total) == (2, 9, 2)
    assert verdicts(guard, 8, 1.0) == [Action.ACCEPT]
    assert verdicts(guard, 9, NAN)[-1] is Action.STOP
    guard.load({}, 9)
    assert guard.rollbacks.in_row == 2
    assert verdicts(guard, 9, 1.0) == [Action.ACCEPT]
    assert (guard.rollbacks.in_row, guard.rollbacks.total) == (0, 2)


def test_counts_never_go_back() -> None:
    guard = Guard(GuardSection(max_skips=5))
    for step in range(3):
        verdicts(guard, step, NAN)
    guard.load({"skipped": 1, "recomputed": 2}, 1)
    assert (guard.skipped, guard.recomputed) == (3, 3)


def test_what_is_cured_by_computing_again_leaves_no_trace_in_the_ladder() -> None:
    guard = Guard(GuardSection())
    for step in range(10):
        assert guard.judge(step, NAN, 1.0).action is Action.RECOMPUTE
        assert guard.judge(step, 1.0, 1.0, again=True).action is Action.ACCEPT
    assert (guard.recomputed, guard.skipped, guard.skips) == (10, 0, 0)


def test_skips_count_in_a_row_only() -> None:
    guard = Guard(GuardSection(max_skips=1))
    for step in range(0, 20, 2):
        assert verdicts(guard, step, NAN)[-1] is Action.SKIP
        assert guard.first_bad == step
        assert verdicts(guard, step + 1, 1.0) == [Action.ACCEPT]
        assert guard.first_bad == -1


def test_a_rollback_is_forgotten_once_its_step_is_passed() -> None:
    guard = Guard(GuardSection(on_non_finite="rollback", max_rollbacks=1))
    assert verdicts(guard, 5, NAN)[-1] is Action.ROLLBACK
    guard.rolled_back(5)
    guard.load({}, 4)
    assert verdicts(guard, 4, 1.0) == [Action.ACCEPT]
    assert verdicts(guard, 5, 1.0) == [Action.ACCEPT]
    assert verdicts(guard, 6, NAN)[-1] is Action.ROLLBACK


def test_rollbacks_survive_a_restart_before_the_step_and_not_after_it(tmp_path: Path) -> None:
    path = tmp_path / "rollbacks.json"
    assert Rollbacks.read(path) == Rollbacks()
    guard = Guard(GuardSection(on_non_finite="rollback", max_rollbacks=1))
    guard.rolled_back(5)
    guard.rollbacks.write(path)
    for resumed_at, expected in ((4, Action.STOP), (6, Action.ROLLBACK)):
        again = Guard(guard.section, Rollbacks.read(path))
        again.load({}, resumed_at)
        assert verdicts(again, 6, NAN)[-1] is expected
        assert again.rollbacks.total == 1
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="remove it to count rollbacks anew"):
        Rollbacks.read(path)


numbers = st.one_of(st.floats(0.1, 10.0), st.sampled_from([NAN, math.inf]))
sections = st.builds(
    GuardSection,
    on_non_finite=st.sampled_from(["skip", "rollback", "stop"]),
    on_spike=st.sampled_from(["ignore", "skip", "rollback", "stop"]),
    spike_window=st.integers(1, 5),
    max_skips=st.integers(1, 3),
    max_rollbacks=st.integers(0, 2),
)


@given(sections, st.lists(st.tuples(numbers, numbers), max_size=40), st.integers(0, 40))
def test_a_run_that_goes_on_judges_as_the_undisturbed_one(
    section: GuardSection, steps: list[tuple[float, float]], cut: int
) -> None:
    """Interrupted at any step, and its state carried over as JSON."""
    whole, parts = Guard(section), Guard(section)
    for step, (loss, norm) in enumerate(steps):
        if step == cut:
            facts = json.loads(json.dumps(parts.facts(), allow_nan=False))
            parts = Guard(section, parts.rollbacks)
            parts.load(facts, step)
        expected = verdicts(whole, step, loss, norm)
        assert verdicts(parts, step, loss, norm) == expected
        assert parts.facts() == whole.facts()
        if expected[-1] in (Action.ROLLBACK, Action.STOP):
            return


@given(sections, st.sets(st.integers(0, 30)), st.integers(1, 8))
def test_every_run_ends(section: GuardSection, poisoned: set[int], save_every: int) -> None:
    """Whatever steps are wrong for good: the run gets past them, or stops; no step is taken more often than the budget
    of rollbacks allows."""
    guard, step, taken = Guard(section), 0, 0
    saved = {0: guard.facts()}
    while step < 31:
        taken += 1
        assert taken <= 31 * 31 * 4
        action = verdicts(guard, step, NAN if step in poisoned else 1.0)[-1]
        if action is Action.STOP:
            return
        if action is Action.ROLLBACK:
            assert guard.rollbacks.in_row < section.max_rollbacks
            back = max(s for s in saved if s <= guard.first_bad)
            guard.rolled_back(step)
            guard.load(saved[back], back)
            saved = {s: facts for s, facts in saved.items() if s <= back}
            step = back
            continue
        step += 1
        if step % save_every == 0:
            saved[step] = guard.facts()
    assert guard.skipped >= len(poisoned)
