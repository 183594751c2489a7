"""From a job to the parts of its run: every "which class does this setting mean" of training is here."""

from __future__ import annotations

import torch
from torch import nn

from convmlp.optim import OPTIMIZERS, create_optimizer
from convmlp_platform.config.paths import resolve
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.ledger import Ledger, LedgerHeader
from convmlp_platform.data.loader import EvalLoader, TrainLoader
from convmlp_platform.data.order import SampleOrder
from convmlp_platform.data.permutation import derive_key
from convmlp_platform.data.quarantine import Quarantine
from convmlp_platform.data.reader import OpenSplit
from convmlp_platform.data.split import ShardedSplit
from convmlp_platform.distributed import World
from convmlp_platform.engine.base import Engine
from convmlp_platform.engine.create import create_engine
from convmlp_platform.engine.types import EngineOptions
from convmlp_platform.errors import ConfigError
from convmlp_platform.training.build_task import build_task as build_task
from convmlp_platform.training.build_transforms import eval_transform_of, normalisation_of, train_transform_of
from convmlp_platform.training.remote_data import open_job_storage, read_ahead_of
from convmlp_platform.training.run_folder import RunFolder
from data_prep.manifest import DatasetManifest


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
    name = "momentum" if section.name == "sgd" and not section.nesterov else section.name
    options = {"betas": section.betas, "eps": section.eps, "momentum": section.momentum}
    taken = {option: value for option, value in options.items() if option in OPTIMIZERS[name]}
    return create_optimizer(
        module,
        name=name,
        lr=section.lr,
        weight_decay=section.weight_decay,
        decay=section.decay,
        **taken,  # type: ignore[arg-type]
    )


def build_engine(job: TrainJob, task: nn.Module, manifest: DatasetManifest, world: World) -> Engine:
    """The task under the job's strategy and precision.

    Raises:
        ConfigError: fp16 without a GPU.
    """
    if job.engine.precision == "fp16" and world.device.type == "cpu":
        raise ConfigError("engine.precision: fp16 needs GPUs, and this worker has none: use bf16 or fp32")
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
