"""Any strategy on any world size goes on from any other's checkpoint, with no conversion."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_ranks
from strategy_matrix import STRATEGIES, read_all, write_all


def pairs(
    root: Path, writers: list[str], writing: list[int], readers: list[str], reading: list[int]
) -> dict[tuple[str, str], float]:
    """Losses of the step after a resume, by reader and writer (`fsdp-2`), after checking each state bit for bit."""
    wanted: dict[str, float] = {}
    for world in writing:
        wanted |= run_ranks(write_all, world, root, writers, world)[0]
    found = {
        (f"{name}-{world}", writer): loss
        for world in reading
        for (name, writer), loss in run_ranks(read_all, world, root, readers, sorted(wanted))[0].items()
    }
    for (reader, writer), loss in found.items():
        assert loss == pytest.approx(wanted[writer], rel=1e-4), (reader, writer)
    return found


@pytest.mark.slow
def test_sharded_checkpoints_go_on_as_ddp_on_one_rank(tmp_path: Path) -> None:
    """A corner of the matrix."""
    assert len(pairs(tmp_path, ["fsdp", "zero3"], [2], ["ddp"], [1])) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_strategy_and_world_size_to_every_other(tmp_path: Path) -> None:
    """{ddp, fsdp, ZeRO-1, 2, 3} x {1, 2, 4} ranks to the same: 225 pairs."""
    names, worlds = list(STRATEGIES), [1, 2, 4]
    assert len(pairs(tmp_path, names, worlds, names, worlds)) == 225
