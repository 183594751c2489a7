"""From a job to the parts of its run: every "which class does this setting mean" of training is here.

The class that `engine.strategy` means. Imports are local: nobody pays for a library they don't use.

The use of a dataset at a URL, as the job's data section sets it: its cache on this node, and reading ahead.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from convmlp.optim import create_optimizer
from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.execution import CPU_PRECISIONS
from convmlp_platform.data.dataset.damage import Quarantine
from convmlp_platform.data.dataset.split import ShardedSplit
from convmlp_platform.data.reading.loader import EvalLoader, TrainLoader
from convmlp_platform.data.reading.reader import OpenSplit
from convmlp_platform.data.sample_order import SampleOrder, derive_key, share_of
from convmlp_platform.data.storage.block_cache import CacheOptions
from convmlp_platform.data.storage.read_ahead import ReadAhead
from convmlp_platform.data.storage.remote import RemoteStorage
from convmlp_platform.data.storage.storage import Storage, open_storage, warn_if_too_small
from convmlp_platform.distributed import World
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineOptions, OptimizerFactory
from convmlp_platform.errors import ConfigError
from convmlp_platform.ledger.ledger import Ledger, LedgerHeader
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.training.build.build_task import build_task as build_task
from convmlp_platform.training.build.build_task import optimizer_options
from convmlp_platform.training.build.build_transforms import (
    eval_transform_of,
    normalisation_of,
    train_transform_of,
)
from data_prep.dataset.manifest import DatasetManifest


def create_engine(
    strategy: str, task: nn.Module, make_optimizer: OptimizerFactory, options: EngineOptions, world: World
) -> Engine:
    """The engine for `task` (a module with the network as `.model`, called with images and labels, returning
    the micro-batch's mean loss and the logits)."""
    match strategy:
        case "ddp":
            from convmlp_platform.engine.ddp import DdpEngine

            return DdpEngine(task, make_optimizer, options, world)
        case "fsdp":
            from convmlp_platform.engine.fsdp import FsdpEngine

            return FsdpEngine(task, make_optimizer, options, world)
        case "deepspeed":
            from convmlp_platform.engine.deepspeed import DeepSpeedEngine

            return DeepSpeedEngine(task, make_optimizer, options, world)
    raise ValueError(f"unknown strategy {strategy!r}")


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


def open_split(
    job: TrainJob, manifest: DatasetManifest, name: str, format: str | None = None
) -> ShardedSplit:
    """One split of the job's dataset, in the format it asks for or in another one."""
    path, format = resolve(job.data.path, "data.path"), format or job.data.format
    storage = open_job_storage(job, manifest, name, format)
    return ShardedSplit(path, manifest, name, format, verify=job.data.verify, storage=storage)


def build_optimizer(job: TrainJob, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over all of the module's parameters."""
    section = job.optimizer
    return create_optimizer(
        module, lr=section.lr, weight_decay=section.weight_decay, **optimizer_options(section)
    )


def build_engine(job: TrainJob, task: nn.Module, manifest: DatasetManifest, world: World) -> Engine:
    """The task under the job's strategy and precision.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if job.engine.precision == "fp16" and world.device.type == "cpu":
        raise ConfigError(f"engine.precision: fp16 needs GPUs, and this worker has none: {CPU_PRECISIONS}")
    training, engine, (mean, std) = job.training, job.engine, normalisation_of(job, manifest)
    options = EngineOptions(
        micro_batch_size=training.micro_batch_size,
        num_micro_batches=training.num_micro_batches,
        seed_for=lambda step, number: derive_key(job.seed, "forward", step, number),
        precision=engine.precision,
        clip_grad_norm=training.clip_grad_norm,
        ema_decay=training.ema_decay,
        compile=engine.compile,
        channels_last=engine.channels_last,
        zero_stage=engine.zero_stage,
        deepspeed=engine.deepspeed,
        mean=mean,
        std=std,
    )
    return create_engine(engine.strategy, task, lambda module: build_optimizer(job, module), options, world)


def build_quarantine(
    job: TrainJob, manifest: DatasetManifest, split: str, folder: RunFolder, world: World
) -> Quarantine | None:
    """Returns the record of a split's damaged samples; None if the job fails on the first one."""
    if job.data.on_damage == "fail":
        return None
    return Quarantine(
        manifest.splits[split].num_samples,
        job.data.max_quarantined,
        job.data.path,
        folder.quarantine,
        world.rank,
    )


def _twin(job: TrainJob, manifest: DatasetManifest, split: str) -> OpenSplit | None:
    """The same split in the dataset's other format, if it has one."""
    others = sorted(set(manifest.splits[split].formats) - {job.data.format})
    return (lambda: open_split(job, manifest, split, others[0])) if others else None


def build_train_loader(
    job: TrainJob, manifest: DatasetManifest, folder: RunFolder, world: World
) -> TrainLoader:
    """The training micro-batches of this rank."""
    split = open_split(job, manifest, job.data.train_split)
    order = SampleOrder(
        len(split),
        job.num_streams,
        job.seed,
        job.data.shuffle_block,
        job.data.shuffle_window,
        job.augment.repeats,
    )
    return TrainLoader(
        split,
        train_transform_of(job, manifest),
        order,
        job.training.global_batch_size,
        job.training.micro_batch_size,
        world.rank,
        world.size,
        job.data.num_workers,
        pin_memory=world.device.type == "cuda",
        read_ahead=read_ahead_of(job, split.storage, order, world),
        quarantine=build_quarantine(job, manifest, job.data.train_split, folder, world),
        twin=_twin(job, manifest, job.data.train_split),
    )


def build_ledger(job: TrainJob, folder: RunFolder, loader: TrainLoader, manifest: DatasetManifest) -> Ledger:
    """The record of what this rank uses, in the run's folder."""
    header = LedgerHeader(
        folder.identity,
        manifest.digest,
        job.data.train_split,
        job.data.format,
        loader.order,
        loader.global_batch_size,
        loader.micro_batch_size,
        loader.world_size,
        loader.rank,
    )
    return Ledger(folder.ledger, header)


def build_eval_loader(
    job: TrainJob, manifest: DatasetManifest, folder: RunFolder, world: World
) -> EvalLoader:
    """This rank's part of the held-out images."""
    split = open_split(job, manifest, job.data.eval_split)
    batch_size = job.eval.batch_size or job.training.micro_batch_size
    return EvalLoader(
        split,
        eval_transform_of(job, manifest),
        batch_size,
        world.rank,
        world.size,
        job.data.num_workers,
        quarantine=build_quarantine(job, manifest, job.data.eval_split, folder, world),
        twin=_twin(job, manifest, job.data.eval_split),
    )
