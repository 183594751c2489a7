"""Batches are read again as they were consumed: same payloads, same replacements, or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reader_helpers import FORMATS, damage, loader, open_split, photos

from convmlp_platform.data.dataset.damage import Quarantine
from convmlp_platform.data.reading.loader import MicroBatch, TrainLoader
from convmlp_platform.errors import DataError
from convmlp_platform.ledger.ledger import LedgerHeader, LedgerWriter
from convmlp_platform.ledger.ledger_reader import RecordedAttempt, read_attempts
from convmlp_platform.replay.recorded_batches import Recorded, consumed_in, read_again

STEP = 1


def consumed(of: TrainLoader, folder: Path, step: int = STEP) -> tuple[list[MicroBatch], RecordedAttempt]:
    """A step as training reads it, and what the ledger says of it."""
    batch = next(of.steps(step, step + 1))
    header = LedgerHeader(
        "i", "d", "train", of.split.format, of.order, of.global_batch_size, of.micro_batch_size, 1, 0
    )
    writer = LedgerWriter(folder / "ledger", replace(header, attempt=1, start_step=step))
    writer.append(step, batch)
    writer.close()
    return batch, read_attempts(folder / "ledger")[1]


def again(of: TrainLoader, attempt: RecordedAttempt) -> list[MicroBatch]:
    step = attempt.header.start_step
    found = consumed_in(attempt, step)
    assert found is not None
    return read_again(of, step, found)


def assert_same(found: list[MicroBatch], wanted: list[MicroBatch]) -> None:
    assert [micro.number for micro in found] == [micro.number for micro in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.replaced, theirs.replaced)
        assert torch.equal(ours.checksums, theirs.checksums)
        assert torch.equal(ours.sample_ids, theirs.sample_ids)


@pytest.mark.parametrize("format", FORMATS)
def test_an_intact_step_is_the_same_again(tmp_path: Path, format: str) -> None:
    of = loader(open_split(photos(tmp_path), format))
    batch, attempt = consumed(of, tmp_path)
    assert_same(again(of, attempt), batch)
    assert consumed_in(attempt, STEP + 1) is None


def test_a_replaced_sample_stays_replaced_after_its_repair(tmp_path: Path) -> None:
    source = open_split(photos(tmp_path))
    lost = int(next(loader(source).steps(STEP, STEP + 1))[0].sample_ids[2])
    shard = Path(source.folder, source.shards[source.locate(lost)[0]].file)
    shutil.copy(shard, tmp_path / "intact")
    damage(source, lost)
    keeper = Quarantine(len(source), 1.0, source.folder, None, 0, tell=lambda line: None)
    batch, attempt = consumed(loader(open_split(tmp_path / "photos"), quarantine=keeper), tmp_path)
    assert batch[0].replaced.tolist() == [False, False, True, False, False]
    assert_same(again(loader(open_split(tmp_path / "photos")), attempt), batch)
    shutil.copy(tmp_path / "intact", shard)
    assert_same(again(loader(open_split(tmp_path / "photos")), attempt), batch)


def test_a_payload_that_was_read_from_the_twin_is_so_again(tmp_path: Path) -> None:
    folder = photos(tmp_path)
    source, twin = open_split(folder), open_split(folder, "ffcv")
    step, lost = next(
        (step, sample)
        for step in range(3)
        for micro in next(loader(source).steps(step, step + 1))
        for sample in micro.sample_ids.tolist()
        if twin.payload(sample).checksum != source.payload(sample).checksum  # a PNG here, raw pixels there
    )
    shard = Path(folder, source.shards[source.locate(lost)[0]].file)
    shutil.copy(shard, tmp_path / "intact")
    damage(source, lost)
    keeper = Quarantine(len(source), 1.0, str(folder), None, 0, tell=lambda line: None)
    batch, attempt = consumed(loader(open_split(folder), quarantine=keeper, twin=twin), tmp_path, step)
    assert lost in keeper.repaired
    assert_same(again(loader(open_split(folder), twin=twin), attempt), batch)
    shutil.copy(tmp_path / "intact", shard)
    assert_same(again(loader(open_split(folder), twin=twin), attempt), batch)
    with pytest.raises(DataError, match="it is whole, but not what was read then"):
        again(loader(open_split(folder)), attempt)


def test_a_sample_damaged_since_is_named(tmp_path: Path) -> None:
    source = open_split(photos(tmp_path))
    batch, attempt = consumed(loader(source), tmp_path)
    lost = int(batch[1].sample_ids[0])
    damage(source, lost)
    with pytest.raises(
        DataError, match=rf"step 1, micro-batch 1: sample {lost} .* can't be read as it was consumed"
    ):
        again(loader(open_split(tmp_path / "photos")), attempt)


def test_another_order_is_refused(tmp_path: Path) -> None:
    of = loader(open_split(photos(tmp_path)))
    _, attempt = consumed(of, tmp_path)
    found = consumed_in(attempt, STEP)
    assert found is not None and found[0].samples is not None
    wrong: list[Recorded] = [replace(found[0], samples=found[0].samples[::-1].copy()), *found[1:]]
    with pytest.raises(DataError, match="not those of the sample order"):
        read_again(of, STEP, wrong)
