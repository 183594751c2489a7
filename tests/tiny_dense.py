"""Tiny detectors and segmenters as bundles, for tests: fresh weights, on the images of `annotated`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from annotated import rectangles, stripes

from convmlp.tasks.task import Task
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.models.bundle import write_bundle
from convmlp_platform.training.build import parts
from convmlp_platform.training.build.bundle_spec import bundle_spec
from data_prep.dataset.manifest import DatasetManifest

DATASETS = {"retinanet": rectangles, "mask_rcnn": rectangles, "semantic_fpn": stripes}


def tiny_job(kind: str, folder: Path, **sections: Any) -> TrainJob:
    """A job of task `kind` that takes seconds."""
    values: dict[str, Any] = {
        "kind": "train",
        "name": kind.replace("_", "-"),
        "task": {"name": kind, "pyramid_channels": 32},
        "model": {"name": "convmlp_tiny"},
        "data": {"path": str(DATASETS[kind]()), "eval_split": "train", "image_size": 64, "num_workers": 0},
        "eval": {"batch_size": 1},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 1, "global_batch_size": 6, "micro_batch_size": 3, "log_every_steps": 1},
        "checkpoint": {"path": str(folder / "runs")},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "launch": {"use_gpu": False},
    }
    given = {name: values.get(name, {}) | section for name, section in sections.items()}
    return TrainJob.model_validate(values | given)


class TinyDense:
    """A job's task with fresh weights that finds something, its dataset, and its bundle."""

    def __init__(self, kind: str) -> None:
        folder = Path(mkdtemp(prefix="convmlp-test-"))
        self.job = tiny_job(kind, folder)
        self.manifest: DatasetManifest = open_manifest(self.job.data.path)
        self.task: Task = parts.build_task(self.job, self.manifest).eval()
        _make_it_see(self.task.model)
        self.spec = bundle_spec(self.job, self.manifest, {"dataset_digest": self.manifest.digest})
        self.bundle = folder / "best"
        write_bundle(self.bundle, self.task.model.state_dict(), self.spec)

    @property
    def split(self) -> ShardedSplit:
        """The held-out images."""
        return parts.open_split(self.job, self.manifest, "train")


@cache
def tiny_dense(kind: str) -> TinyDense:
    """The same for all tests of a session."""
    return TinyDense(kind)


def _make_it_see(model: Any) -> None:
    """Fresh detectors find nothing (RetinaNet) or a hundred things (Mask R-CNN, which takes seconds)."""
    with torch.no_grad():
        if hasattr(model, "head"):
            last = model.head.classification_head.cls_logits
            last.weight.mul_(1000.0)
            last.bias.fill_(-2.8)
        elif hasattr(model, "roi_heads"):
            model.roi_heads.box_predictor.cls_score.bias[0] = 2.9
