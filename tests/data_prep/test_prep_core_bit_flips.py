"""Any single bit of any file of a dataset may flip: `verify` finds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bit_flips import files_by_kind, flipped, random_positions
from coco_files import make_coco
from prep_helpers import make_folder, prepare_folder

from data_prep.config import CocoSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare
from data_prep.verify import verify

KINDS = ("manifest", "index", "tar", "beton")


@pytest.fixture(scope="module", params=["classification", "detection"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "classification":
        source = make_folder(folder / "source", train=5, val=2)
        prepare_folder(source, folder / "out", samples_per_shard=5)
    else:
        output = OutputConfig(path=folder / "out", samples_per_shard=3)
        config = PrepareConfig(source=CocoSource(path=make_coco(folder / "source", 3, 2)), output=output)
        prepare(config, progress=lambda line: None)
    assert verify(folder / "out").ok
    return folder / "out"


def undetected(dataset: Path, kind: str, flips: int) -> list[tuple[str, int]]:
    positions = random_positions(files_by_kind(dataset)[kind], flips, seed=flips)
    missed = []
    for file, bit in positions:
        with flipped(file, bit):
            if verify(dataset).ok:
                missed.append((file.name, bit))
    assert len(positions) == flips
    return missed


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_are_found(dataset: Path, kind: str) -> None:
    assert undetected(dataset, kind, flips=64) == []
    assert verify(dataset).ok


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_of_ten_thousand_flipped_bits_are_found(dataset: Path, kind: str) -> None:
    assert undetected(dataset, kind, flips=1_250) == []  # of each kind and task
    assert verify(dataset).ok
