"""Restarts are counted by cause within a window, and a crash loop ends at once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from convmlp_platform.config.sections.resilience import RestartsSection
from convmlp_platform.launch.supervisor.restarts import CHARGED, Budgets
from convmlp_platform.launch.supervisor.verdict import FINAL, End
from data_prep.storage.retry import Patience

causes = st.sampled_from(sorted(CHARGED - {"code"}))


@given(
    events=st.lists(st.tuples(causes, st.floats(0, 4 * 3600)), max_size=60),
    limit=st.integers(-1, 4),
    hours=st.floats(0.1, 3.0),
)
def test_no_window_has_more_restarts_than_its_budget(
    events: list[tuple[End, float]], limit: int, hours: float
) -> None:
    section = RestartsSection(
        preemption=limit, hardware=limit, hang=limit, storage=limit, code=limit, window_hours=hours
    )
    budgets = Budgets(section)
    allowed: list[tuple[End, float]] = []
    for cause, now in sorted(events, key=lambda event: event[1]):
        within = [at for one, at in allowed if one == cause and at > now - 3600 * hours]
        decision = budgets.decide(cause, now)
        assert decision.restart == (limit < 0 or len(within) < limit)
        if decision.restart:
            allowed.append((cause, now))
    assert budgets.totals == Counter(cause for cause, _ in allowed)


def test_each_cause_has_its_own_budget() -> None:
    budgets = Budgets(RestartsSection(hardware=1, hang=1))
    assert budgets.decide("hardware", 0).note == "hardware: 1 of 1 in 24 h"
    assert budgets.decide("hang", 0).restart
    refused = budgets.decide("hardware", 1)
    assert not refused.restart
    assert "launch.restarts.hardware (=1 in 24 h)" in refused.note


def test_growing_costs_nothing() -> None:
    budgets = Budgets(RestartsSection(preemption=0, hardware=0))
    assert all(budgets.decide("grow", at).restart for at in range(50))


@pytest.mark.parametrize("cause", sorted(FINAL))
def test_nothing_follows_a_final_cause(cause: End) -> None:
    assert not Budgets(RestartsSection()).decide(cause, 0).restart


def test_the_same_error_of_code_twice_is_a_crash_loop_whatever_lies_between() -> None:
    budgets = Budgets(RestartsSection(code=-1))
    assert budgets.decide("code", 0, headline="ValueError: seven").restart
    assert budgets.decide("code", 1, headline="KeyError: 'x'").restart
    assert budgets.decide("hardware", 2).restart
    assert not budgets.decide("code", 3, headline="ValueError: seven").restart


def test_an_error_of_code_before_the_first_step_is_a_crash_loop() -> None:
    decision = Budgets(RestartsSection(code=-1)).decide(
        "code", 0, headline="ValueError: seven", stepped=False
    )
    assert not decision.restart
    assert "before the first step" in decision.note


def test_the_old_name_of_the_storages_budget_still_counts() -> None:
    assert RestartsSection.model_validate({"data": 4}).storage == 4
    assert "data" not in RestartsSection.model_validate({"data": 4}).model_dump()
    with pytest.raises(ValidationError, match="data"):
        RestartsSection.model_validate({"data": 4, "storage": 4})


def test_an_outage_of_many_minutes_is_within_the_budget() -> None:
    budgets = Budgets(RestartsSection())
    patience_s, outage_s = Patience().total, 1200.0
    assert all(budgets.decide("storage", at * patience_s).restart for at in range(int(outage_s / patience_s)))


def test_restarts_after_an_outage_wait_longer_each_time_and_others_do_not_wait() -> None:
    budgets = Budgets(RestartsSection(storage=-1))
    causes: list[End] = ["storage", "storage", "storage", "hardware", "storage", *(["storage"] * 8)]
    pauses = [budgets.decide(cause, at).pause_s for at, cause in enumerate(causes)]
    assert pauses[:7] == [1, 2, 4, 0, 1, 2, 4]
    assert pauses[-1] == 30
