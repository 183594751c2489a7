"""What makes a run another run. Every option of a training job is on one of the two lists."""

from __future__ import annotations

from typing import Any

import pytest

from convmlp_platform.config.explain.problems import dotted_names
from convmlp_platform.config.identity import differences, identity, identity_fields, identity_of
from convmlp_platform.config.load import parse_job
from convmlp_platform.config.schema import TrainJob

DIGEST = "sha256:" + "0" * 64
BASE: dict[str, Any] = {
    "kind": "train",
    "name": "x",
    "model": {"name": "convmlp_s", "init_from": "a.pth"},
    "data": {"path": "d"},
    "optimizer": {"lr": 0.001},
    "training": {"epochs": 5, "global_batch_size": 64, "micro_batch_size": 16},
    "engine": {"strategy": "deepspeed"},
}
DECIDES = {
    "seed": 1,
    "task.name": "retinanet",
    "task.pyramid_channels": 128,
    "task.anchor_scale": 2.0,
    "task.max_side": 640,
    "task.short_sides": [480, 512],
    "task.scale": [0.75, 1.5],
    "task.max_class_share": 0.5,
    "task.photometric": False,
    "model.name": "convmlp_m",
    "model.num_classes": 7,
    "model.drop_path_rate": 0.2,
    "model.init_from": "b.pth",
    "model.init_weights": "raw",
    "model.init_head": "keep",
    "model.options": {"stem_stride": 2},
    "data.train_split": "a",
    "data.eval_split": "b",
    "data.image_size": 64,
    "data.mean": [0.5, 0.5, 0.5],
    "data.std": [0.5, 0.5, 0.5],
    "data.num_streams": 8,
    "data.shuffle_block": 1,
    "data.shuffle_window": 1,
    "augment.repeats": 3,
    "augment.crop": "pad",
    "augment.scale": [0.5, 1.0],
    "augment.ratio": [1.0, 1.0],
    "augment.interpolation": "bilinear",
    "augment.pad": 1,
    "augment.hflip": 0.0,
    "augment.color_jitter": 0.4,
    "augment.rand_augment": "rand-m9",
    "augment.random_erasing": 0.1,
    "augment.mixup": 0.1,
    "augment.cutmix": 0.1,
    "augment.mix_prob": 0.1,
    "augment.mix_switch_prob": 0.1,
    "augment.permute": "pixels",
    "augment.permute_patch": 8,
    "augment.permute_seed": 1,
    "loss.label_smoothing": 0.1,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.0005,
    "optimizer.weight_decay": 0.0,
    "optimizer.decay": "all",
    "optimizer.betas": [0.8, 0.9],
    "optimizer.eps": 1e-6,
    "optimizer.momentum": 0.5,
    "optimizer.nesterov": False,
    "schedule.name": "linear",
    "schedule.moves": "epoch",
    "schedule.decay_from": "start",
    "schedule.power": 0.9,
    "schedule.milestones": [8, 11],
    "schedule.gamma": 0.5,
    "schedule.delay_epochs": 1,
    "schedule.warmup_epochs": 1,
    "schedule.warmup_steps": 1,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-6,
    "schedule.cooldown_epochs": 1,
    "training.epochs": 6,
    "training.steps": 100,
    "training.global_batch_size": 128,
    "training.micro_batch_size": 32,
    "training.clip_grad_norm": 1.0,
    "training.ema_decay": 0.9,
    "engine.precision": "bf16",
    "eval.crop_pct": 1.0,
    "eval.interpolation": "bilinear",
}
DOES_NOT_DECIDE = {
    "name": "y",
    "data.path": "/elsewhere",
    "data.format": "ffcv",
    "data.digest": DIGEST,
    "data.num_workers": 0,
    "data.verify": False,
    "data.on_damage": "quarantine",
    "data.max_quarantined": 0.5,
    "data.cache_dir": "/cache",
    "data.cache_bytes": 1 << 30,
    "data.read_ahead": 0,
    "eval.every_epochs": 2,
    "eval.every_steps": 2,
    "eval.batch_size": 1,
    "training.max_steps": 3,
    "training.log_every_steps": 1,
    "engine.strategy": "fsdp",
    "engine.zero_stage": 3,
    "engine.compile": True,
    "engine.channels_last": False,
    "engine.deepspeed": {"zero_optimization": {}},
    "checkpoint.path": "/elsewhere",
    "checkpoint.store": "s3://elsewhere",
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 9,
    "callbacks": ["a.b:C"],
    "tracking.tensorboard": True,
    "tracking.uri": "sqlite:///x.db",
    "tracking.experiment": "e",
    "tracking.tags": {"a": "b"},
    "tracking.register_as.name": "m",
    "tracking.register_as.alias": "a",
    "tracking.register_as.automatic": True,
    "launch.address": "local",
    "launch.num_workers": 2,
    "launch.use_gpu": False,
    "launch.cpus_per_worker": 2,
    "launch.placement": "SPREAD",
    "launch.min_workers": 1,
    "launch.wait_for_workers_s": 5.0,
    "launch.preemption_grace_s": 5.0,
    "launch.price_per_gpu_hour": 2.5,
    "launch.currency": "EUR",
    "profile.steps": [1, 2],
    "profile.every_rank": True,
    "launch.hang.enabled": False,
    "launch.hang.grace_s": 1.0,
    "launch.hang.start_s": 1.0,
    "launch.restarts.preemption": 1,
    "launch.restarts.hardware": 1,
    "launch.restarts.hang": 1,
    "launch.restarts.storage": 1,
    "launch.restarts.code": 0,
    "launch.restarts.window_hours": 1.0,
    "guard.on_non_finite": "stop",
    "guard.on_spike": "rollback",
    "guard.spike_factor": 2.0,
    "guard.spike_window": 10,
    "guard.max_skips": 1,
    "guard.max_rollbacks": 1,
}


# What an option can't be given without.
NEEDED: dict[str, dict[str, Any]] = {
    "schedule.milestones": {"schedule.name": "step"},
    "training.steps": {"training.epochs": None},
    "profile.every_rank": {"profile.steps": [1, 2]},
}


def job_with(name: str = "name", value: object = "x") -> TrainJob:
    values = {key: dict(section) if isinstance(section, dict) else section for key, section in BASE.items()}
    holder, *rest = name.split(".")
    if not rest:
        values[holder] = value
    elif len(rest) == 1:
        values.setdefault(holder, {})[rest[0]] = value
        for other, needed_value in NEEDED.get(name, {}).items():
            section, key = other.split(".")
            values.setdefault(section, {})[key] = needed_value
    else:
        needed = {"name": "n"} if rest[0] == "register_as" else {}
        values.setdefault(holder, {})[rest[0]] = needed | {rest[1]: value}
    job = parse_job(values, "x")
    assert isinstance(job, TrainJob)
    return job


def test_every_option_is_classified() -> None:
    assert DECIDES.keys() | DOES_NOT_DECIDE.keys() == set(dotted_names([TrainJob])) - {"kind"}
    assert not DECIDES.keys() & DOES_NOT_DECIDE.keys()


@pytest.mark.parametrize("name", DECIDES)
def test_identity_changes_with(name: str) -> None:
    old, new = (identity_fields(job, DIGEST) for job in (job_with(), job_with(name, DECIDES[name])))
    assert identity_of(old) != identity_of(new)
    assert any(line.startswith(f"{name}") for line in differences(old, new))


@pytest.mark.parametrize("name", DOES_NOT_DECIDE)
def test_identity_is_the_same_with_another(name: str) -> None:
    assert identity(job_with(name, DOES_NOT_DECIDE[name]), DIGEST) == identity(job_with(), DIGEST)


def test_identity_is_of_the_data_and_not_of_its_place() -> None:
    assert identity(job_with(), DIGEST) != identity(job_with(), "sha256:" + "1" * 64)
    moved = job_with("model.init_from", "/other/root/a.pth")
    assert identity(moved, DIGEST) == identity(job_with(), DIGEST)


def test_streams_count_by_their_number_in_use() -> None:
    assert identity(job_with("data.num_streams", 4), DIGEST) == identity(job_with(), DIGEST)


def test_differences_name_field_old_and_new() -> None:
    old = identity_fields(job_with(), DIGEST)
    new = identity_fields(job_with("optimizer.lr", 5e-4), DIGEST)
    assert differences(old, new) == ["optimizer.lr: 0.001 → 0.0005"]
    assert differences(old, old) == []
    assert differences(old, old | {"model.options.stem_stride": 2}) == [
        "model.options.stem_stride: not set → 2"
    ]
    assert len(identity_of(old)) == 64
