"""Reading ahead: blocks are there before they are read, within bounds, and nothing outlives the rank."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from prepared import digits
from pydantic import TypeAdapter
from s3_server import BUCKET, S3Proxy, s3_server

from convmlp.transforms.image_transforms import train_transform
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading.loader import TrainLoader
from convmlp_platform.data.sample_order import SampleOrder
from convmlp_platform.data.storage.block_cache import BlockCache, CacheOptions
from convmlp_platform.data.storage.read_ahead import ReadAhead, ReadAheadWalk
from convmlp_platform.data.storage.remote import Block, RemoteStorage
from convmlp_platform.data.storage.storage import shards_of
from data_prep.copy_dataset import copy_dataset

URL = f"s3://{BUCKET}/digits"
GLOBAL, MICRO, STREAMS = 32, 8, 4


@pytest.fixture(scope="module")
def server() -> Iterator[S3Proxy]:
    with s3_server() as proxy:
        copy_dataset(str(digits("webdataset", "ffcv")), URL, progress=lambda _line: None)
        yield proxy


def plan_in(cache: Path, **changes: object) -> ReadAhead:
    manifest = open_manifest(str(digits("webdataset", "ffcv")))
    order = SampleOrder(1438, STREAMS, seed=5, block=16, window=64)
    shards = shards_of(manifest, "train", "webdataset")
    options = CacheOptions(cache, 1 << 30)
    plan = ReadAhead(URL, shards, options, order, GLOBAL, MICRO, (1, 2), windows=2, max_bytes=1 << 30)
    return replace(plan, **changes)  # type: ignore[arg-type]


def storage_of(plan: ReadAhead) -> RemoteStorage:
    return RemoteStorage(plan.url, plan.shards, BlockCache(plan.cache), plan.order.block)


def needed(plan: ReadAhead, steps: range) -> dict[Block, int]:
    """The blocks of these steps, with the step of their first use."""
    storage, found = storage_of(plan), dict[Block, int]()
    for step in steps:
        for number in plan.numbers:
            samples = plan.order.step_samples(step, GLOBAL, number * MICRO, MICRO)[1].tolist()
            for block in storage.blocks(samples):
                found.setdefault(block, step)
    return found


def until(reached: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if reached():
            return
        pause.wait(0.01)
    pytest.fail("did not come to pass in 30 s")


def test_the_walk_meets_each_block_before_its_first_use(server: S3Proxy, tmp_path: Path) -> None:
    plan, steps = plan_in(tmp_path), range(7, 70)
    walk = ReadAheadWalk(plan, storage_of(plan), steps.start, steps.stop)
    met: dict[Block, int] = {}
    for step, block in walk.first_uses():
        met.setdefault(block, step)
    assert met == needed(plan, steps)


def test_what_is_read_is_there_already(server: S3Proxy, tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    assert plan.steps_ahead == 16
    storage = storage_of(plan)
    with plan.running(0, 40) as progress:
        for step in range(0, 40, 8):
            progress.reached(step)
            until(partial(has, storage, needed(plan, range(step, min(step + plan.steps_ahead, 40)))))
        server.reset()
        for number, start, end in needed(plan, range(40)):
            storage.read(number, start, end - start)
    assert server.requests == []


@pytest.mark.slow
def test_it_stops_at_the_bounds(server: S3Proxy, tmp_path: Path) -> None:
    near = plan_in(tmp_path / "near", windows=1)
    first = [block for block, step in needed(near, range(90)).items() if step <= near.steps_ahead]
    with near.running(0, 90):
        storage = storage_of(near)
        until(lambda: has(storage, first))
        assert len(pieces(tmp_path / "near")) == len(first)
    few = plan_in(tmp_path / "few", windows=10, max_bytes=200_000)
    with few.running(0, 90) as progress:
        until(lambda: bytes_in(tmp_path / "few") >= 200_000)
        block = max(end - start for _, start, end in needed(few, range(90)))
        assert bytes_in(tmp_path / "few") <= 200_000 + block
        progress.reached(60)
        until(lambda: bytes_in(tmp_path / "few") >= 400_000)


def has(storage: RemoteStorage, blocks: Iterable[Block]) -> bool:
    return all(storage.cache.has(storage._name(block)) for block in blocks)


def pieces(cache: Path) -> list[Path]:
    return list(cache.glob("convmlp-blocks/[!i]*-*-*[0-9]"))


def bytes_in(cache: Path) -> int:
    return sum(path.stat().st_size for path in pieces(cache))


def test_the_plan_arrives_as_it_was_sent(tmp_path: Path) -> None:
    plan, sent = plan_in(tmp_path), list[str]()

    class Recorded(Exception):
        pass

    def record(_self: object, request: str) -> None:
        sent.append(request)
        raise Recorded

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Recorded):
        patch.setattr("convmlp_platform.data.storage.read_ahead.Progress.__init__", record)
        with plan.running(0, 1):
            pass
    assert TypeAdapter(ReadAhead).validate_python(json.loads(sent[0])["plan"]) == plan


def test_it_ends_when_the_rank_is_killed(server: S3Proxy, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def rank() -> None:
        with plan_in(tmp_path).running(0, 90) as progress:
            theirs.send(progress.process.pid)
            signal.pause()

    process = context.Process(target=rank)
    process.start()
    reader = psutil.Process(ours.recv())
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    psutil.wait_procs([reader], timeout=30)
    assert not reader.is_running()


def test_a_lost_process_stops_nobody(server: S3Proxy, tmp_path: Path) -> None:
    with plan_in(tmp_path).running(0, 90) as progress:
        progress.process.kill()
        progress.process.wait()
        for step in range(90):
            progress.reached(step)


def test_training_batches_are_those_of_the_folder(server: S3Proxy, tmp_path: Path) -> None:
    folder = digits("webdataset", "ffcv")
    manifest, plan = open_manifest(URL), plan_in(tmp_path)
    transform = train_transform(16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    there = ShardedSplit(URL, manifest, "train", "webdataset", storage=storage_of(plan))
    here = ShardedSplit(folder, manifest, "train", "webdataset")
    ours = TrainLoader(there, transform, plan.order, GLOBAL, MICRO, 1, 2, 2, read_ahead=plan)
    theirs = TrainLoader(here, transform, plan.order, GLOBAL, MICRO, 1, 2, 0)
    pairs = zip(ours.steps(40, 48), theirs.steps(40, 48), strict=True)
    for mine, wanted in ((m, w) for micros, wants in pairs for m, w in zip(micros, wants, strict=True)):
        assert torch.equal(mine.sample_ids, wanted.sample_ids)
        assert torch.equal(mine.checksums, wanted.checksums)
        assert torch.equal(mine.images, wanted.images)
