"""The search for the samples that make a micro-batch fail. It tries parts of the micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_CULPRITS = 8
"""After so many the search ends: then it isn't single samples."""

Places = Sequence[int]


@dataclass(frozen=True)
class Search:
    """The result of the search.

    Args:
        culprits: places that fail alone, in the order in which they were found.
        group: the smallest set of places that was seen to fail where no single one of it does; else empty.
        rest_is_fine: whether the micro-batch without the culprits passes; None: not tried, nothing is left.
        runs: how many parts were tried.
    """

    culprits: list[int]
    group: list[int]
    rest_is_fine: bool | None
    runs: int


def find_culprits(fails: Callable[[Places], bool], size: int, most: int = MOST_CULPRITS) -> Search:
    """Search the places 0..size - 1, which are known to fail together.

    Halves are tried: where the first passes, the second must fail, and at the end the one place that is left must
    fail alone, and the others must pass without it. A single culprit takes at most ceil(log2(size)) + 2 trials;
    of several, each takes as many. If only several together fail, no culprit is named but the smallest set that
    was seen to fail.

    Args:
        fails: whether these places alone fail; called with at least one.
        most: stop after so many culprits.
    """
    runs = 0

    def tried(places: list[int]) -> bool:
        nonlocal runs
        runs += 1
        return fails(places)

    culprits: list[int] = []
    rest = list(range(size))
    while True:
        suspects, seen = rest, rest
        while len(suspects) > 1:
            first = suspects[: len(suspects) // 2]
            if tried(first):
                suspects = seen = first
            else:
                suspects = suspects[len(first) :]
        if seen != suspects and not tried(suspects):
            return Search(culprits, seen, False, runs)
        culprits += suspects
        rest = [place for place in rest if place not in suspects]
        if not rest:
            return Search(culprits, [], None, runs)
        if not tried(rest):
            return Search(culprits, [], True, runs)
        if len(culprits) >= most:
            return Search(culprits, [], False, runs)
