"""The laws of the sample order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convmlp_platform.data.sample_order import KeyedPermutation, SampleOrder, derive_key
from convmlp_platform.ledger.ledger_walk import complete_epochs


@given(size=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_keyed_permutation_is_a_bijection(size: int, key: int) -> None:
    image = KeyedPermutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


@given(size=st.integers(1, 10**12), key=st.integers(0, 2**64 - 1), data=st.data())
def test_keyed_permutation_needs_no_table(size: int, key: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True)))
    image = KeyedPermutation(size, key)(places)
    assert len(set(image.tolist())) == len(places)
    assert image.min() >= 0
    assert image.max() < size


@pytest.mark.parametrize("size", [3, 17])
def test_every_element_is_equally_likely_at_every_place(size: int) -> None:
    trials = 500
    counts = np.zeros((size, size))
    for key in range(trials):
        counts[np.arange(size), KeyedPermutation(size, derive_key("uniform", key))(np.arange(size))] += 1
    expected = trials / size
    freedom = (size - 1) ** 2
    deviations = (((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5
    assert abs(deviations) < 4


orders = st.builds(
    lambda samples, streams, seed, block, window: SampleOrder(
        samples + streams, streams, seed, block, window
    ),
    samples=st.integers(0, 600),
    streams=st.sampled_from([1, 2, 3, 4, 8]),
    seed=st.integers(0, 2**32),
    block=st.integers(1, 80),
    window=st.integers(1, 300),
)
repeated = st.builds(
    lambda order, repeats: replace(order, repeats=repeats), order=orders, repeats=st.integers(2, 5)
)


@given(order=orders, epoch=st.integers(0, 5))
def test_streams_of_an_epoch_hold_every_sample_once(order: SampleOrder, epoch: int) -> None:
    seen = []
    for stream in range(order.num_streams):
        first, past = order.stream_bounds(stream)
        epochs, samples = order.stream_samples(stream, epoch * (past - first), past - first)
        assert set(epochs.tolist()) <= {epoch}
        seen.append(samples)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(order.num_samples))


@given(order=orders, epoch=st.integers(0, 3))
def test_a_window_needs_whole_blocks_of_the_storage(order: SampleOrder, epoch: int) -> None:
    """Blocks are `block` neighbours by sample id, the same in every epoch: what storage reads and caches."""
    for stream in range(order.num_streams):
        first, past = order.stream_bounds(stream)
        _, samples = order.stream_samples(stream, epoch * (past - first), past - first)
        for start in range(0, len(samples), order.window):
            window = samples[start : start + order.window]
            # At either end a block shared with the neighbour, and perhaps the short one in between.
            assert len(np.unique(window // order.block)) <= len(window) // order.block + 3


@given(order=orders | repeated, per_stream=st.integers(1, 9), steps=st.integers(1, 40))
def test_steps_use_each_sample_at_most_once_an_epoch(order: SampleOrder, per_stream: int, steps: int) -> None:
    batch = per_stream * order.num_streams
    pairs: set[tuple[int, int]] = set()
    for step in range(steps):
        epochs, samples = order.step_samples(step, batch)
        pairs |= set(zip(epochs.tolist(), samples.tolist(), strict=True))
    assert len(pairs) == steps * batch


@given(order=orders | repeated, per_stream=st.integers(1, 9), step=st.integers(0, 10**6), data=st.data())
def test_a_part_of_a_batch_is_that_part_of_the_whole(
    order: SampleOrder, per_stream: int, step: int, data: st.DataObject
) -> None:
    batch = per_stream * order.num_streams
    first = data.draw(st.integers(0, batch - 1))
    count = data.draw(st.integers(1, batch - first))
    whole, part = order.step_samples(step, batch), order.step_samples(step, batch, first, count)
    assert np.array_equal(whole[0][first : first + count], part[0])
    assert np.array_equal(whole[1][first : first + count], part[1])


@settings(max_examples=20, deadline=None)
@given(order=repeated, round_=st.integers(0, 3))
def test_repeated_epochs_hold_every_sample_once_and_end_together(order: SampleOrder, round_: int) -> None:
    """In the places of one round of all streams, each sample stands once in each of `repeats` epochs."""
    longest = max(past - first for first, past in map(order.stream_bounds, range(order.num_streams)))
    seen: set[tuple[int, int]] = set()
    for stream in range(order.num_streams):
        epochs, samples = order.stream_samples(stream, 0, (round_ + 1) * longest * order.repeats)
        found = list(zip(epochs.tolist(), samples.tolist(), strict=True))
        assert not seen & set(found)
        seen |= set(found)
    complete = complete_epochs(order, order.num_streams, (round_ + 1) * longest * order.repeats)
    assert complete == (round_ + 1) * order.repeats
    wanted = {(epoch, sample) for epoch in range(complete) for sample in range(order.num_samples)}
    assert wanted <= seen


@settings(max_examples=20, deadline=None)
@given(order=repeated, step=st.integers(0, 1000))
def test_a_samples_uses_lie_in_one_step_in_different_streams(order: SampleOrder, step: int) -> None:
    batch = 6 * order.repeats * order.num_streams
    epochs, samples = order.step_samples(step, batch)
    uses: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for at, (epoch, sample) in enumerate(zip(epochs.tolist(), samples.tolist(), strict=True)):
        key = (epoch // order.repeats, sample)
        uses.setdefault(key, []).append((epoch % order.repeats, at // (batch // order.num_streams)))
    for found in uses.values():
        assert sorted(use for use, _ in found) == list(range(order.repeats))
        assert len({stream for _, stream in found}) == min(order.repeats, order.num_streams)


@settings(max_examples=20, deadline=None)
@given(order=repeated)
def test_first_uses_are_the_order_without_repeats(order: SampleOrder) -> None:
    plain, count = replace(order, repeats=1), 50
    for stream in range(order.num_streams):
        epochs, samples = order.samples_at(stream, np.arange(count) * order.repeats)
        wanted_epochs, wanted = plain.stream_samples(stream, 0, count)
        assert np.array_equal(samples, wanted)
        assert np.array_equal(epochs, wanted_epochs * order.repeats)


@pytest.mark.parametrize("streams", [1, 3])
def test_a_window_of_one_keeps_a_block_in_the_order_of_storage(streams: int) -> None:
    order = SampleOrder(300, streams, seed=7, block=300, window=1)
    for stream in range(streams):
        first, past = order.stream_bounds(stream)
        _, samples = order.stream_samples(stream, 0, 2 * (past - first))
        assert samples.tolist() == [*range(first, past)] * 2


def test_the_order_is_pinned() -> None:
    """A change of the order breaks the resume of every run there is: it needs a new decision and a new
    `config.identity.ORDER_VERSION`, not just new numbers here."""
    _, samples = SampleOrder(1000, 2, seed=7).step_samples(3, 8)
    assert samples.tolist() == PINNED


def test_seed_and_epoch_change_the_order() -> None:
    base = SampleOrder(1000, 2, seed=7)
    _, first = base.stream_samples(0, 0, 500)
    _, second = base.stream_samples(0, 500, 500)
    _, other = SampleOrder(1000, 2, seed=8).stream_samples(0, 0, 500)
    assert (first != second).mean() > 0.9
    assert (first != other).mean() > 0.9


PINNED = [327, 120, 292, 315, 780, 542, 910, 458]
