"""The recipes of calls without a job file: those of jobs/prep_folder.yaml and jobs/finetune_folder.yaml.

What is `auto` follows from the dataset (`config.automatic`). A test compares both with the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convmlp_platform.config.sections.section import AUTO
from data_prep.dataset.manifest import DatasetManifest, SplitInfo

PREPARE: dict[str, Any] = {"kind": "prepare", "max_rejected": 0.01}
TRAIN: dict[str, Any] = {
    "kind": "train",
    "seed": 0,
    "model": {"drop_path_rate": AUTO},
    "data": {"image_size": 64, "num_workers": 1},
    "augment": {"crop": "random_resized", "scale": [0.35, 1.0], "hflip": 0.5},
    "eval": {"every_epochs": AUTO, "crop_pct": 1.0},
    "loss": {"label_smoothing": 0.1},
    "optimizer": {"name": "adamw", "lr": AUTO, "weight_decay": 0.05},
    "schedule": {"name": "cosine", "warmup_steps": AUTO, "min_lr": 1e-5},
    "training": {
        "epochs": AUTO,
        "global_batch_size": AUTO,
        "micro_batch_size": AUTO,
        "clip_grad_norm": 1.0,
        "ema_decay": AUTO,
    },
    "checkpoint": {"path": "runs"},
    "launch": {"num_workers": 1, "use_gpu": AUTO},
}
_HELD_OUT = 0.2
_MANY = 1_000_000


def folder_source(folder: Path) -> dict[str, Any]:
    """The source section for a folder of images: with `train/` in it its splits are folders, else a fifth of the images
    of its class folders becomes `val`."""
    source: dict[str, Any] = {"kind": "image_folder", "path": str(folder)}
    return source if (folder / "train").is_dir() else source | {"val_fraction": _HELD_OUT}


def stand_in(split: str) -> DatasetManifest:
    """The manifest of a dataset that isn't prepared yet, for a first check of settings: so large that none is refused
    for its size."""
    return DatasetManifest(
        name="dataset",
        classes=["one", "other"],
        splits={split: SplitInfo(num_samples=_MANY, formats={})},
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        source={},
        preprocessing={},
        digest=f"sha256:{0:064x}",
    )
