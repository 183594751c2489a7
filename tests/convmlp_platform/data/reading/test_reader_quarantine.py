"""Damaged samples: named, read from the twin format, or left out and counted; never passed on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from reader_helpers import FORMATS, damage, loader, open_split, photos

from convmlp.transforms.image_transforms import eval_transform
from convmlp_platform.data.dataset.damage import DamagedSample, Quarantine
from convmlp_platform.data.dataset.split import ShardedSplit
from convmlp_platform.data.reading.loader import EvalLoader, MicroBatch, TrainLoader
from convmlp_platform.errors import DataError

STEPS = 3  # an epoch


def epoch(of: TrainLoader) -> list[MicroBatch]:
    return [micro for micros in of.steps(0, STEPS) for micro in micros]


def quarantine(
    source: ShardedSplit, share: float, record: Path | None = None
) -> tuple[Quarantine, list[str]]:
    told: list[str] = []
    return Quarantine(len(source), share, source.folder, record, rank=3, tell=told.append), told


def place_of(batches: list[MicroBatch], sample: int) -> tuple[int, int]:
    return next(
        (number, micro.sample_ids.tolist().index(sample))
        for number, micro in enumerate(batches)
        if sample in micro.sample_ids.tolist()
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("format", FORMATS)
def test_failing_names_shard_key_bytes_and_the_repair(tmp_path: Path, format: str, num_workers: int) -> None:
    source = open_split(photos(tmp_path), format)
    damage(source, 7)
    with pytest.raises(DataError) as caught:
        epoch(loader(source, num_workers=num_workers))
    message, index = str(caught.value), source.index(0)
    assert f"{source.shards[0].file}: sample {index.key(7)!r}" in message
    assert f"bytes {index.offset[7]}..{index.offset[7] + index.length[7]}" in message
    assert f"convmlp data repair {source.folder}" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("format", FORMATS)
def test_the_twin_format_gives_the_same_pixels(tmp_path: Path, format: str) -> None:
    folder = photos(tmp_path)
    other = FORMATS[1 - FORMATS.index(format)]
    whole = epoch(loader(open_split(folder, format)))
    source, twin = open_split(folder, format), open_split(folder, other)
    for sample in (2, 4, 20):
        damage(source, sample)
    keeper, told = quarantine(source, 0.0, tmp_path / "quarantine.jsonl")
    found = epoch(loader(source, quarantine=keeper, twin=twin))
    for ours, wanted in zip(found, whole, strict=True):
        assert torch.equal(ours.images, wanted.images)
        assert torch.equal(ours.labels, wanted.labels)
        assert not ours.replaced.any()
    assert sorted(keeper.repaired) == [2, 4, 20]
    assert not keeper.left_out
    assert len(told) == 3
    assert "read from the dataset's other format" in told[0]
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert {(line["sample"], line["outcome"], line["rank"]) for line in lines} == {
        (sample, "repaired", 3) for sample in (2, 4, 20)
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_without_a_twin_the_next_intact_sample_takes_the_place(tmp_path: Path, num_workers: int) -> None:
    source = open_split(photos(tmp_path))
    whole = epoch(loader(source))
    batch, place = 1, 3
    lost = whole[batch].sample_ids[place : place + 2].tolist()  # the last two of five: the donor is the first
    for sample in lost:
        damage(source, sample)
    keeper, told = quarantine(source, 0.1, tmp_path / "quarantine.jsonl")
    found = epoch(loader(source, num_workers=num_workers, quarantine=keeper))
    for number, (ours, wanted) in enumerate(zip(found, whole, strict=True)):
        assert torch.equal(ours.sample_ids, wanted.sample_ids)
        assert torch.equal(ours.epochs, wanted.epochs)
        expected = [number == batch and at >= place for at in range(5)]
        assert ours.replaced.tolist() == expected
        for at in range(5):
            donor = 0 if expected[at] else at
            assert torch.equal(ours.images[at], wanted.images[donor])
            assert ours.labels[at] == wanted.labels[donor]
            assert ours.checksums[at] == (0 if expected[at] else wanted.checksums[at])
    assert sorted(keeper.left_out) == sorted(lost)
    assert all(line.startswith("rank 3: left out") for line in told)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["sample"] for line in lines) == sorted(lost)
    assert {line["outcome"] for line in lines} == {"replaced"}


def test_each_sample_is_told_once_over_epochs(tmp_path: Path) -> None:
    source = open_split(photos(tmp_path))
    damage(source, 11)
    keeper, told = quarantine(source, 0.1)
    for _ in loader(source, quarantine=keeper).steps(0, 4 * STEPS):
        pass
    assert len(told) == 1


def test_the_budget_counts_distinct_samples_and_lists_them(tmp_path: Path) -> None:
    source = open_split(photos(tmp_path))
    for sample in range(4):
        damage(source, sample)
    keeper, _ = quarantine(source, 3 / 30)
    with pytest.raises(DataError) as caught:
        epoch(loader(source, quarantine=keeper))
    message = str(caught.value)
    assert "4 of 30 samples are damaged, data.max_quarantined (=0.1) allows 3" in message
    for sample in range(4):
        assert repr(source.key(sample)) in message
    assert "convmlp data repair" in message


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_a_lost_shard_is_read_from_the_twin(tmp_path: Path, harm: str) -> None:
    folder = photos(tmp_path)
    whole = epoch(loader(open_split(folder)))
    source, twin = open_split(folder), open_split(folder, "ffcv")
    shard = folder / source.shards[1].file
    if harm == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(DataError, match=shard.name):
        epoch(loader(open_split(folder)))
    keeper, _ = quarantine(source, 0.0)
    found = epoch(loader(source, quarantine=keeper, twin=twin))
    assert all(torch.equal(ours.images, wanted.images) for ours, wanted in zip(found, whole, strict=True))
    assert sorted(keeper.repaired) == list(range(8, 16))


def test_a_wholly_damaged_micro_batch_is_refused(tmp_path: Path) -> None:
    source = open_split(photos(tmp_path))
    for sample in epoch(loader(source))[0].sample_ids.tolist():
        damage(source, sample)
    keeper, _ = quarantine(source, 1.0)
    with pytest.raises(DataError, match="all 5 samples of a micro-batch are damaged"):
        epoch(loader(source, quarantine=keeper))


def test_a_twin_that_is_damaged_too_does_not_help(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    source, twin = open_split(folder), open_split(folder, "ffcv")
    damage(source, 9)
    damage(twin, 9)
    keeper, _ = quarantine(source, 0.1)
    batches = epoch(loader(source, quarantine=keeper, twin=twin))
    number, at = place_of(batches, 9)
    assert batches[number].replaced[at]
    assert list(keeper.left_out) == [9]


def test_evaluation_takes_the_twin_but_never_another_image(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    source, twin = open_split(folder), open_split(folder, "ffcv")
    transform = eval_transform(24, mean=(0.5,) * 3, std=(0.5,) * 3)
    whole = list(EvalLoader(source, transform, 10, 0, 1, 0))
    damage(source, 12)
    keeper, _ = quarantine(source, 1.0)
    found = list(EvalLoader(source, transform, 10, 0, 1, 0, quarantine=keeper, twin=lambda: twin))
    assert all(torch.equal(ours.images, wanted.images) for ours, wanted in zip(found, whole, strict=True))
    assert list(keeper.repaired) == [12]
    with pytest.raises(DataError, match="is damaged"):
        list(EvalLoader(source, transform, 10, 0, 1, 0, quarantine=keeper))


class FlakyStorage:
    """Wrong bytes at the first read of each place, until they are discarded: a bad cache or network."""

    def __init__(self, source: ShardedSplit, heals: bool = True) -> None:
        self.real, self.heals = source.storage, heals
        self.good: set[tuple[int, int]] = set()
        self.index, self.ahead = source.storage.index, source.storage.ahead

    def read(self, number: int, offset: int, length: int) -> bytes:
        content = bytes(self.real.read(number, offset, length))
        return content if (number, offset) in self.good else bytes([content[0] ^ 1]) + content[1:]

    def discard(self, number: int, offset: int, length: int) -> bool:
        if self.heals:
            self.good.add((number, offset))
        return True


def test_wrong_bytes_are_read_once_more_past_the_cache(tmp_path: Path) -> None:
    source = open_split(photos(tmp_path))
    expected = source.payload(0)
    source.storage = FlakyStorage(source)
    assert source.payload(0) == expected
    source = open_split(Path(source.folder))
    source.storage = FlakyStorage(source, heals=False)
    with pytest.raises(DamagedSample, match="its checksum is not the index's"):
        source.payload(1)


def test_a_damaged_index_is_fatal_and_named(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    source = open_split(folder)
    index = folder / source.shards[0].index
    shutil.copy(folder / source.shards[1].index, index)
    with pytest.raises(DataError, match=f"{index.name} is damaged: its SHA-256"):
        open_split(folder).payload(0)
