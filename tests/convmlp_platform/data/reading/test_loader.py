"""What reaches the model: the same samples and pixels on any number of ranks and readers, from either format."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from prepared import digits

from convmlp.transforms.image_transforms import eval_transform, train_transform
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading.loader import EvalLoader, MicroBatch, TrainLoader
from convmlp_platform.data.sample_order import SampleOrder, share_of
from convmlp_platform.errors import DataError

MEAN = STD = (0.5, 0.5, 0.5)
GLOBAL, MICRO = 24, 4


def split(folder: Path, format: str = "webdataset", name: str = "train") -> ShardedSplit:
    return ShardedSplit(folder, open_manifest(str(folder)), name, format)


def train_loader(source: ShardedSplit, rank: int, world_size: int, num_workers: int = 0) -> TrainLoader:
    transform = train_transform(
        16, mean=MEAN, std=STD, rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5
    )
    order = SampleOrder(len(source), num_streams=6, seed=3)
    return TrainLoader(source, transform, order, GLOBAL, MICRO, rank, world_size, num_workers)


def global_batches(
    source: ShardedSplit, world_size: int, steps: range, num_workers: int = 0
) -> list[list[MicroBatch]]:
    """For each step, the real micro-batches of all ranks by number."""
    loaders = [train_loader(source, rank, world_size, num_workers) for rank in range(world_size)]
    by_rank = [list(loader.steps(steps.start, steps.stop)) for loader in loaders]
    assert len({len(micros) for rank in by_rank for micros in rank}) == 1, "ranks differ in forward passes"
    return [
        sorted((m for rank in by_rank for m in rank[i] if not m.ghost), key=lambda m: m.number)
        for i in range(len(steps))
    ]


def assert_equal(found: list[list[MicroBatch]], wanted: list[list[MicroBatch]]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert [m.number for m in ours] == list(range(GLOBAL // MICRO))
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.sample_ids, other.sample_ids)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.images, other.images)


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (4, 0), (5, 0), (6, 0), (2, 2)])
def test_batches_do_not_depend_on_ranks_or_readers(world_size: int, num_workers: int) -> None:
    source = split(digits())
    steps = range(57, 62)  # over the end of the first epoch (1438 / 24 = 59.9 steps)
    assert_equal(global_batches(source, world_size, steps, num_workers), global_batches(source, 1, steps))


def test_a_start_anywhere_gives_what_a_run_from_the_beginning_gives() -> None:
    source = split(digits())
    whole = global_batches(source, 1, range(0, 8))
    assert_equal(global_batches(source, 3, range(5, 8)), whole[5:])


def test_both_formats_give_the_same_batches() -> None:
    folder = digits("webdataset", "ffcv")
    steps = range(0, 3)
    assert_equal(global_batches(split(folder, "ffcv"), 1, steps), global_batches(split(folder), 1, steps))


def test_the_same_sample_is_augmented_anew_in_each_epoch() -> None:
    source = split(digits())
    loader = train_loader(source, 0, 1)
    seen: dict[int, torch.Tensor] = {}
    for micros in loader.steps(0, 2 * len(source) // GLOBAL):
        for micro in micros:
            for image, sample in zip(micro.images, micro.sample_ids.tolist(), strict=True):
                if sample in seen:
                    assert not torch.equal(image, seen[sample])
                    return
                seen[sample] = image
    pytest.fail("no sample came twice in two epochs")


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_sees_each_image_once(world_size: int) -> None:
    source = split(digits(), name="val")
    transform = eval_transform(8, mean=MEAN, std=STD)
    loaders = [EvalLoader(source, transform, 100, rank, world_size, 0) for rank in range(world_size)]
    by_rank = [list(loader) for loader in loaders]
    assert len({len(batches) for batches in by_rank}) == 1, "ranks differ in forward passes"
    seen = [
        s for batches in by_rank for batch in batches if not batch.ghost for s in batch.sample_ids.tolist()
    ]
    assert sorted(seen) == list(range(len(source)))


@pytest.mark.parametrize("world_size", range(1, 7))
def test_shares_cover_a_step(world_size: int) -> None:
    shares = [share_of(rank, world_size, 6) for rank in range(world_size)]
    assert [n for share in shares for n in share.numbers[: share.real]] == list(range(6))
    assert all(share.real >= 1 for share in shares)


def test_more_ranks_than_micro_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="7 ranks are more than the 6 micro-batches"):
        share_of(0, 7, 6)


def test_a_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(digits(), folder)
    source = split(folder)
    shard = folder / source.shards[0].file
    row = source.index(0).row(5)
    content = bytearray(shard.read_bytes())
    content[row.offset + row.length // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=rf"{shard.name}: sample '{row.key}' .* is damaged"):
        split(folder).image(5)


def test_a_cut_or_missing_shard_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(digits(), folder)
    shard = folder / split(folder).shards[-1].file
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="was cut or changed"):
        split(folder).check_files()
    with pytest.raises(DataError, match="was cut or changed"):
        split(folder).image(len(split(folder)) - 1)
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name} can't be read"):
        split(folder).check_files()


def test_what_the_dataset_does_not_have_is_named() -> None:
    folder = digits()
    with pytest.raises(DataError, match=r"no ffcv shards; it has webdataset"):
        split(folder, "ffcv")
    with pytest.raises(DataError, match=r"no split 'test'; it has train, val"):
        split(folder, name="test")
    with pytest.raises(DataError, match="the job asks for sha256:0000"):
        open_manifest(str(folder), "sha256:" + "0" * 64)
    with pytest.raises(DataError, match=r"data\.path: no dataset manifest"):
        open_manifest(str(folder / "nowhere"))


@pytest.mark.parametrize(
    ("format", "rank", "world_size"),
    [("webdataset", 0, 1), ("webdataset", 1, 4), ("webdataset", 4, 5), ("ffcv", 1, 4)],
)
def test_what_a_step_waits_for_is_named(format: str, rank: int, world_size: int) -> None:
    """Over 1,024 steps, where names are computed anew, and over the ends of epochs."""
    source = split(digits("webdataset", "ffcv") if format == "ffcv" else digits(), format)
    loader = train_loader(source, rank, world_size)
    share = share_of(rank, world_size, GLOBAL // MICRO)
    for step in [0, 1, 59, 60, 1023, 1024, 1100, 3]:
        found = [
            Path(source.shards[source.locate(int(samples[0]))[0]].file).name
            for number in share.numbers[: share.real]
            for _, samples in [loader.order.step_samples(step, GLOBAL, number * MICRO, 1)]
        ]
        assert loader.pending(step) == ", ".join(dict.fromkeys(found))
    assert loader.patience_s == 0.0
