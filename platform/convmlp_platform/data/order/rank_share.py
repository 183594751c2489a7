"""The micro-batches of a step that a rank computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A rank's run of micro-batches: `numbers` within the step; those past `real` are ghosts, computed with
    weight 0 so that every rank takes part in the same collectives."""

    numbers: tuple[int, ...]
    real: int


def share_of(rank: int, world_size: int, num_micro_batches: int) -> Share:
    """The contiguous run of a rank. Runs differ by at most one; a shorter one repeats its last as a ghost.

    Raises ValueError where there are more ranks than micro-batches.
    """
    if world_size > num_micro_batches:
        raise ValueError(f"{world_size} ranks are more than the {num_micro_batches} micro-batches of a step")
    first, past = rank * num_micro_batches // world_size, (rank + 1) * num_micro_batches // world_size
    longest = -(-num_micro_batches // world_size)
    numbers = tuple(range(first, past))
    return Share(numbers + numbers[-1:] * (longest - len(numbers)), real=len(numbers))
