"""Where workers are put, which ranks they get, and which GPUs those see."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.launch.workers.placement import (
    Home,
    Strategy,
    choose_nodes,
    environment,
    rank_order,
    seats,
)

nodes = st.sampled_from("abcde")
rooms = st.dictionaries(nodes, st.integers(0, 4))
strategies = st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])


@given(rooms, rooms, st.integers(0, 12), strategies)
def test_no_node_gets_more_than_fits(
    room: dict[str, int], taken: dict[str, int], count: int, strategy: Strategy
) -> None:
    chosen = Counter(choose_nodes(room, taken, count, strategy))
    assert chosen.total() <= count
    assert all(chosen[node] <= room[node] for node in chosen)
    if not strategy.startswith("STRICT"):
        assert chosen.total() == min(count, sum(room.values()))


@given(rooms, st.integers(1, 8))
def test_spread_is_as_even_as_the_room_allows(room: dict[str, int], count: int) -> None:
    chosen = Counter(choose_nodes(room, {}, count, "SPREAD"))
    most = max(chosen.values(), default=0)
    assert all(chosen[node] >= min(most - 1, room[node]) for node in room)


@given(rooms, rooms, st.integers(1, 8))
def test_strict_placements_keep_their_word(room: dict[str, int], taken: dict[str, int], count: int) -> None:
    ours = {node for node, workers in taken.items() if workers}
    packed = set(choose_nodes(room, taken, count, "STRICT_PACK"))
    assert len(packed) <= 1 if not ours else packed <= ours
    spread = choose_nodes(room, taken, count, "STRICT_SPREAD")
    assert len(set(spread)) == len(spread)
    assert not set(spread) & ours


def test_packing_fills_our_nodes_before_others() -> None:
    assert choose_nodes({"a": 4, "b": 1}, {"b": 3}, 2, "PACK") == ["b", "a"]


homes = st.lists(
    st.builds(lambda node: Home(node, f"10.0.0.{ord(node)}", node), nodes), min_size=1, max_size=9
)


@given(homes)
def test_ranks_of_a_node_are_neighbours_and_the_first_home_stays_first(them: list[Home]) -> None:
    order = rank_order(them)
    assert sorted(order) == list(range(len(them)))
    assert order[0] == 0
    in_order = [them[position].node for position in order]
    changes = sum(one != other for one, other in pairwise(in_order))
    assert changes == len(set(in_order)) - 1
    for seat, node in zip(seats([them[position] for position in order]), in_order, strict=True):
        assert seat.local_world_size == in_order.count(node)
        assert seat.local_rank == seat.rank - in_order.index(node)


def test_each_rank_sees_the_gpus_of_all_ranks_on_its_node_and_no_others() -> None:
    them = [
        Home("a", "10.0.0.1", "a", ("10",)),
        Home("a", "10.0.0.1", "a", ("2",)),
        Home("b", "10.0.0.2", "b", ("0",)),
    ]
    found = seats(them)
    assert [(seat.local_rank, seat.gpus) for seat in found] == [
        (0, ("2", "10")),
        (1, ("2", "10")),
        (0, ("0",)),
    ]
    variables = environment(found[1], 3, Home("a", "10.0.0.1", "a", interface="eth0"), 7)
    assert variables == {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2", "CONVMLP_START": "7",
        "CUDA_VISIBLE_DEVICES": "2,10", "GLOO_SOCKET_IFNAME": "eth0",
    }  # fmt: skip


def one_by_one(room: dict[str, int], taken: dict[str, int], count: int, strategy: Strategy) -> list[str]:
    """The rule as it reads: for each worker the best node of all, as things are then."""
    left, load, chosen = dict(room), dict.fromkeys(room, 0) | taken, list[str]()
    while len(chosen) < count:
        nodes = [node for node in left if left[node] > 0]
        if strategy == "STRICT_SPREAD":
            nodes = [node for node in nodes if not load[node]]
        if strategy == "STRICT_PACK":
            fitting = [node for node in nodes if left[node] >= count - len(chosen)]
            nodes = [node for node in nodes if load[node]] if any(load.values()) else (fitting or nodes)
        if not nodes:
            break
        spread = "SPREAD" in strategy
        node = min(nodes, key=lambda one: (load[one] if spread else -load[one], -left[one], one))
        chosen.append(node)
        left[node] -= 1
        load[node] += 1
    return chosen


@given(rooms, rooms, st.integers(0, 12), strategies)
def test_all_at_once_are_placed_as_one_by_one(
    room: dict[str, int], taken: dict[str, int], count: int, strategy: Strategy
) -> None:
    assert choose_nodes(room, taken, count, strategy) == one_by_one(room, taken, count, strategy)
