"""Reader processes say what they read, and end with the training process."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from prepared import digits

from convmlp.transforms.image_transforms import train_transform
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading import process_name
from convmlp_platform.data.reading.loader import TrainLoader
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.data.storage.block_cache import BlockCache, CacheOptions
from convmlp_platform.data.storage.remote import RemoteStorage
from convmlp_platform.health.hangs.process_view import children_of, look_at, state_of
from data_prep.storage.retry import Patience


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.01)
    return False


def loader(num_workers: int, storage: RemoteStorage | None = None) -> TrainLoader:
    manifest = open_manifest(str(digits()))
    source = ShardedSplit(digits(), manifest, "train", "webdataset", storage=storage)
    transform = train_transform(16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return TrainLoader(source, transform, SampleOrder(len(source), 6, seed=3), 24, 4, 0, 1, num_workers)


def test_a_loaders_readers_are_named_after_their_shards_or_idle() -> None:
    before = set(children_of(os.getpid()))
    with closing(loader(2).steps(0, 50)) as steps:
        next(steps)
        readers = set(children_of(os.getpid())) - before

        def names() -> set[str]:
            return {view.name for reader in readers if (view := look_at(reader))}

        assert len(readers) == 2
        assert eventually(lambda: names() == {"reader idle"}), "their queues are full"
    assert look_at(os.getpid()).name != "reader idle"  # type: ignore[union-attr]


def test_a_reader_that_is_stuck_ends_with_the_training_process() -> None:
    ready, told = os.pipe()
    training = os.fork()
    if not training:
        if not os.fork():
            process_name.become_reader()
            os.write(told, os.getpid().to_bytes(4, "little"))
        signal.pause()
    reader = int.from_bytes(os.read(ready, 4), "little")
    os.kill(training, signal.SIGKILL)
    os.waitpid(training, 0)
    assert eventually(lambda: state_of(reader) in ("Z", "X"))


def test_only_a_remote_storage_may_make_a_step_wait(tmp_path: Path) -> None:
    assert loader(0).patience_s == 0.0
    cache = BlockCache(CacheOptions(tmp_path, 1 << 20))
    shards = open_manifest(str(digits())).splits["train"].formats["webdataset"]
    remote = RemoteStorage("s3://bucket/digits", shards, cache, patience=Patience(total=5.0))
    assert loader(0, remote).patience_s == 2 * 5.0 + 60.0


def test_what_a_reader_inherited_is_no_garbage_of_its_own() -> None:
    """What the trainer left over, such as a process group, is not ended in a process without its threads."""

    class Left:
        def __del__(self) -> None:
            os.write(out, b"ended")

    ours, out = os.pipe()
    left = Left()
    left.itself = left  # type: ignore[attr-defined]
    del left
    if (child := os.fork()) == 0:
        process_name.become_reader()
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 5)
    gc.collect()
    assert os.read(ours, 5) == b"ended"
