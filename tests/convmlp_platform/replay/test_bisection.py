"""The search for the samples that make a micro-batch fail."""

from __future__ import annotations

from math import ceil, log2

from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.replay.sample_search import MOST_CULPRITS, find_culprits


@given(st.integers(1, 512), st.data())
def test_a_single_culprit_is_found_in_log2_plus_two_runs(size: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, size - 1))
    found = find_culprits(lambda places: culprit in places, size)
    assert found.culprits == [culprit]
    assert found.rest_is_fine in ((None,) if size == 1 else (True,))
    assert found.runs <= ceil(log2(size)) + 2


@given(st.integers(2, 128), st.data())
def test_of_several_culprits_all_are_found_or_more_are_admitted(size: int, data: st.DataObject) -> None:
    culprits = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    found = find_culprits(lambda places: bool(culprits & set(places)), size)
    assert set(found.culprits) <= culprits
    assert len(found.culprits) == min(len(culprits), MOST_CULPRITS)
    assert (found.rest_is_fine is False) == (len(culprits) > MOST_CULPRITS)
    assert found.runs <= len(found.culprits) * (ceil(log2(size)) + 2)


@given(st.integers(2, 64), st.data())
def test_nobody_is_named_where_only_several_together_fail(size: int, data: st.DataObject) -> None:
    together = data.draw(st.integers(2, size))
    found = find_culprits(lambda places: len(places) >= together, size)
    assert found.culprits == []
    assert len(found.group) >= together
    assert found.rest_is_fine is False


def test_a_culprit_beside_a_pair_is_named_alone() -> None:
    found = find_culprits(lambda places: 0 in places or {5, 6} <= set(places), 8)
    assert found.culprits == [0]
    assert {5, 6} <= set(found.group)
    assert found.rest_is_fine is False
