"""The use of a dataset at a URL, as the job's data section sets it: its cache on this node, and reading ahead."""

from __future__ import annotations

import os
from pathlib import Path

from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.assignment import share_of
from convmlp_platform.data.block_cache import CacheOptions
from convmlp_platform.data.open_storage import open_storage, warn_if_too_small
from convmlp_platform.data.order import SampleOrder
from convmlp_platform.data.read_ahead import ReadAhead
from convmlp_platform.data.remote import RemoteStorage
from convmlp_platform.data.storage import Storage
from convmlp_platform.distributed import World
from data_prep.manifest import DatasetManifest


def open_job_storage(job: TrainJob, manifest: DatasetManifest, split: str, format: str) -> Storage:
    """The shards of one split of the job's dataset, in a folder or at a URL."""
    return open_storage(
        resolve(job.data.path, "data.path"),
        manifest,
        split,
        format,
        cache=_cache(job),
        block_size=job.data.shuffle_block,
    )


def read_ahead_of(job: TrainJob, storage: Storage, order: SampleOrder, world: World) -> ReadAhead | None:
    """Returns the reader that fetches this rank's next shuffle windows.

    Returns None for a folder, and with `data.read_ahead: 0`.
    """
    if not isinstance(storage, RemoteStorage):
        return None
    training, ranks = job.training, _ranks_on_this_node(world)
    if world.local_rank == 0:
        # A repeated sample's uses stand in neighbouring streams.
        own = -(-order.num_streams * ranks // world.size)
        streams = min(order.num_streams, own + order.repeats - 1)
        warn_if_too_small(_cache(job), storage.shards, streams, order.window, job.data.read_ahead)
    if not job.data.read_ahead:
        return None
    share = share_of(world.rank, world.size, training.num_micro_batches)
    return ReadAhead(
        storage.url,
        storage.shards,
        _cache(job),
        order,
        training.global_batch_size,
        training.micro_batch_size,
        share.numbers[: share.real],
        job.data.read_ahead,
        job.data.cache_bytes // 2 // ranks,
    )


def _cache(job: TrainJob) -> CacheOptions:
    return CacheOptions(Path(resolve(job.data.cache_dir, "data.cache_dir")), job.data.cache_bytes)


def _ranks_on_this_node(world: World) -> int:
    """torchrun and Ray Train both set it; a plain process is alone."""
    return min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), world.size)
