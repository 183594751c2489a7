"""The job files of the papers, value by value against what the papers and their authors' code say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from machines import eight_gpus

from convmlp_platform.config.load import flatten, load_job
from convmlp_platform.config.schema import TrainJob

JOBS = Path(__file__).parents[3] / "jobs"
Values = dict[str, Any]

IMAGENET_PIXELS: Values = {"data.mean": "[0.485, 0.456, 0.406]", "data.std": "[0.229, 0.224, 0.225]"}
INCEPTION_PIXELS: Values = {"data.mean": "[0.5, 0.5, 0.5]", "data.std": "[0.5, 0.5, 0.5]"}

# timm's and DeiT's set, of both authors' ImageNet scripts and of ConvMLP's fine-tuning.
STRONG: Values = {
    "augment.crop": "random_resized",
    "augment.ratio": "[0.75, 1.3333333333333333]",
    "augment.hflip": 0.5,
    "augment.color_jitter": 0.0,  # given as 0.4, and without effect beside RandAugment
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.random_erasing": 0.25,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.mix_prob": 1.0,
    "augment.mix_switch_prob": 0.5,
    "loss.label_smoothing": 0.1,
}
ADAMW: Values = {
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 0.05,
    "optimizer.decay": "weights",
    "optimizer.betas": "[0.9, 0.999]",
    "optimizer.eps": 1e-8,
    "training.clip_grad_norm": None,
}
TIMM_COSINE: Values = {
    "schedule.name": "cosine",
    "schedule.moves": "epoch",
    "schedule.decay_from": "start",
    "schedule.delay_epochs": 0.0,
    "schedule.warmup_steps": 0,
}

# configs/classification/convmlp_*_imagenet.yml and classification.py at SHI-Labs/Convolutional-MLPs 092bf71; main.py at
# ShoufaChen/CycleMLP 4e062a0, whose loop tells the scheduler the number of the epoch that has ended.
IMAGENET: Values = {
    **IMAGENET_PIXELS,
    **STRONG,
    **ADAMW,
    **TIMM_COSINE,
    "model.drop_path_rate": 0.1,
    "data.image_size": 224,
    "augment.scale": "[0.08, 1.0]",
    "augment.interpolation": "bicubic",
    "eval.interpolation": "bicubic",
    "schedule.warmup_epochs": 5.0,
    "schedule.min_lr": 1e-5,
    "training.epochs": 300.0,
    "training.global_batch_size": 8 * 128,
    "training.micro_batch_size": 128,
    "launch.num_workers": 8,
}
CONVMLP: Values = IMAGENET | {
    "seed": 42,
    "augment.repeats": 1,
    "eval.crop_pct": 0.9,
    "optimizer.lr": 5e-4,
    "schedule.warmup_lr": 1e-4,
    "schedule.cooldown_epochs": 10.0,
    "training.ema_decay": 0.99996,
}
CYCLEMLP: Values = IMAGENET | {
    "seed": 0,
    "model.name": "cyclemlp_b1",
    "augment.repeats": 3,
    "eval.crop_pct": 0.875,
    "optimizer.lr": 5e-4 * 1024 / 512,
    "schedule.warmup_lr": 1e-6,
    "schedule.cooldown_epochs": 0.0,
    "schedule.delay_epochs": 1.0,
    "training.ema_decay": None,
}
# arXiv:2105.01601, appendix B, ImageNet: B and L.
MIXER: Values = INCEPTION_PIXELS | {
    "model.drop_path_rate": 0.1,
    "model.options.gelu": "tanh",
    "data.image_size": 224,
    "augment.crop": "random_resized",
    "augment.rand_augment": "rand-m15-mmax15-n2-p1.0",
    "augment.mixup": 0.5,
    "augment.cutmix": 0.0,
    "augment.random_erasing": 0.0,
    "loss.label_smoothing": 0.0,
    "eval.crop_pct": 224 / 256,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 0.1,
    "optimizer.betas": "[0.9, 0.999]",
    "schedule.name": "linear",
    "schedule.warmup_steps": 10_000,
    "schedule.min_lr": 0.0,
    "training.epochs": 300.0,
    "training.global_batch_size": 4096,
    "training.clip_grad_norm": 1.0,
    "training.ema_decay": None,
}
# configs/classification/finetuned/convmlp_s_*.yml, as above.
TRANSFER: Values = {
    **STRONG,
    **ADAMW,
    **TIMM_COSINE,
    "seed": 42,
    "model.name": "convmlp_s",
    "model.init_from": "models:/convmlp-s@champion",
    "model.drop_path_rate": 0.1,
    "data.image_size": 224,
    "augment.scale": "[0.8, 1.0]",
    "augment.interpolation": "random",
    "eval.crop_pct": 1.0,
    "eval.interpolation": "bicubic",
    "schedule.warmup_epochs": 10.0,
    "schedule.warmup_lr": 1e-6,
    "schedule.cooldown_epochs": 10.0,
    "training.epochs": 50.0,
    "training.ema_decay": None,
}
CIFAR: Values = TRANSFER | {
    "optimizer.lr": 3e-4,
    "schedule.min_lr": 1e-5,
    "training.micro_batch_size": 128,
    "training.global_batch_size": 8 * 128,
}
# configs/detection/*_convmlp_s_fpn_1x_coco.py, with mmdetection 2's schedule_1x.py and datasets.
DENSE: Values = IMAGENET_PIXELS | {
    "model.name": "convmlp_s",
    "model.init_from": "models:/convmlp-s@champion",
    "model.drop_path_rate": 0.1,
    "augment.hflip": 0.5,
    "optimizer.name": "adamw",
    "optimizer.weight_decay": 1e-4,
    "optimizer.decay": "all",
    "optimizer.betas": "[0.9, 0.999]",
    "training.clip_grad_norm": None,
    "training.ema_decay": None,
    "task.pyramid_channels": 256,
    "engine.precision": "fp32",
    "launch.num_workers": 8,
}
COCO: Values = DENSE | {
    "data.image_size": 800,
    "task.anchor_scale": None,
    "task.max_side": None,
    "task.short_sides": "[]",
    "optimizer.lr": 1e-4,
    "schedule.name": "step",
    "schedule.milestones": "[8.0, 11.0]",
    "schedule.gamma": 0.1,
    "schedule.warmup_steps": 500,
    "schedule.warmup_lr": 1e-7,  # a ratio of .001
    "training.epochs": 12.0,
    "training.global_batch_size": 8 * 2,
    "training.micro_batch_size": 2,
}
# cyclemlp/main.py and latex/ at MarcoBenelli/cyclemlp b389d37.
DECK: Values = {
    "model.name": "cyclemlp_b1",
    "model.drop_path_rate": 0.0,
    "data.mean": "[0.0, 0.0, 0.0]",
    "data.std": "[1.0, 1.0, 1.0]",
    "data.shuffle_window": 1,
    "augment.crop": "none",
    "augment.hflip": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.rand_augment": None,
    "augment.random_erasing": 0.0,
    "eval.crop_pct": 1.0,
    "loss.label_smoothing": 0.0,
    "optimizer.name": "adamw",
    "optimizer.lr": 1e-3,
    "optimizer.weight_decay": 5e-2,
    "optimizer.decay": "all",
    "schedule.name": "cosine",
    "schedule.moves": "epoch",
    "schedule.min_lr": 0.0,
    "schedule.warmup_epochs": 0.0,
    "schedule.cooldown_epochs": 0.0,
    "training.epochs": 100.0,
    "training.global_batch_size": 256,
    "training.micro_batch_size": 256,
    "training.clip_grad_norm": None,
    "engine.precision": "fp32",
}
RECIPES: dict[str, Values] = {
    "pretrain_convmlp": CONVMLP | {"model.name": "convmlp_s", "tracking.register_as.name": "convmlp-s"},
    "pretrain_convmlp_m": CONVMLP | {"model.name": "convmlp_m", "tracking.register_as.name": "convmlp-m"},
    "pretrain_convmlp_l": CONVMLP | {"model.name": "convmlp_l", "tracking.register_as.name": "convmlp-l"},
    "pretrain_cyclemlp": CYCLEMLP,
    "pretrain_mixer_b16": MIXER | {"model.name": "mixer_b16"},
    "pretrain_mixer_l16": MIXER | {"model.name": "mixer_l16"},
    "transfer_cifar10": CIFAR | {
        "data.mean": "[0.4914, 0.4822, 0.4465]",
        "data.std": "[0.247, 0.2435, 0.2616]",
    },
    "transfer_cifar100": CIFAR | {
        "data.mean": "[0.5071, 0.4867, 0.4408]",
        "data.std": "[0.2675, 0.2565, 0.2761]",
    },
    "transfer_flowers102": TRANSFER | {
        "data.mean": "[0.4353, 0.3773, 0.2872]",
        "data.std": "[0.2966, 0.2455, 0.2698]",
        "optimizer.lr": 5e-4,
        "schedule.min_lr": 1e-8,
        "training.micro_batch_size": 96,
    },
    # vit_jax/configs/{mixer_base16_cifar10,common}.py at google-research/vision_transformer c6de1e5.
    "transfer_mixer_cifar10": INCEPTION_PIXELS | {
        "model.name": "mixer_b16",
        "model.options.gelu": "tanh",
        "data.image_size": 224,
        "augment.crop": "random_resized",
        "augment.scale": "[0.05, 1.0]",
        "augment.interpolation": "bilinear",
        "augment.hflip": 0.5,
        "eval.crop_pct": 1.0,
        "eval.interpolation": "bilinear",
        "loss.label_smoothing": 0.0,
        "optimizer.name": "sgd",
        "optimizer.nesterov": False,
        "optimizer.momentum": 0.9,
        "optimizer.lr": 0.03,
        "optimizer.weight_decay": 0.0,
        "schedule.name": "cosine",
        "schedule.warmup_steps": 500,
        "schedule.min_lr": 0.0,
        "training.steps": 10_000,
        "training.global_batch_size": 512,
        "training.clip_grad_norm": 1.0,
    },
    "detect_retinanet": COCO | {"task.name": "retinanet"},
    "detect_mask_rcnn": COCO | {"task.name": "mask_rcnn"},
    # configs/segmentation/fpn_convmlp_s_512x512_40k_ade20k.py, with mmsegmentation 0's datasets/ade20k.py.
    "segment_semantic_fpn": DENSE | {
        "task.name": "semantic_fpn",
        "task.scale": "[0.5, 2.0]",
        "task.max_class_share": 0.75,
        "task.photometric": True,
        "task.max_side": None,
        "data.image_size": 512,
        "eval.every_steps": 4000,
        "optimizer.lr": 2e-4,
        "schedule.name": "poly",
        "schedule.power": 0.9,
        "schedule.min_lr": 0.0,
        "schedule.warmup_steps": 0,
        "schedule.warmup_epochs": 0.0,
        "training.steps": 40_000,
        "training.global_batch_size": 8 * 4,
        "training.micro_batch_size": 4,
    },
    "train_cyclemlp_cifar10": DECK | {"data.image_size": 32, "data.shuffle_block": 50_000},
    "train_cyclemlp_stl10": DECK | {"data.image_size": 96, "data.shuffle_block": 5_000},
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_job_is_the_published_recipe(name: str) -> None:
    job = load_job(JOBS / f"{name}.yaml", of_machines=eight_gpus)
    assert isinstance(job, TrainJob)
    flat = flatten(job)
    published = RECIPES[name]
    assert {field: flat[field] for field in published} == published


def test_sizes_of_convmlp_differ_in_nothing_but_names() -> None:
    """As the authors' files."""
    small, *larger = (
        flatten(load_job(JOBS / f"pretrain_convmlp{size}.yaml", of_machines=eight_gpus))
        for size in ("", "_m", "_l")
    )
    for flat in larger:
        differing = {field for field in flat if flat[field] != small[field]}
        assert differing == {"name", "model.name", "tracking.register_as.name"}


def test_the_larger_models_of_the_headers_load() -> None:
    """The --set of the transfer jobs' headers: batch and rate of M and L."""
    large = load_job(
        JOBS / "transfer_cifar100.yaml",
        ["training.global_batch_size=512", "training.micro_batch_size=64"],
        of_machines=eight_gpus,
    )
    assert isinstance(large, TrainJob) and large.launch.num_workers == large.training.num_micro_batches
    flowers = load_job(
        JOBS / "transfer_flowers102.yaml",
        ["optimizer.lr=3e-4", "training.global_batch_size=64", "training.micro_batch_size=64"],
        of_machines=eight_gpus,
    )
    assert isinstance(flowers, TrainJob)
