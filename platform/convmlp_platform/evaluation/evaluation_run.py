"""An evaluation, from a checked job to the folder with its result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from convmlp.model_cost import count_parameters, count_task_macs
from convmlp.tasks.coco_metrics import CocoMetrics
from convmlp.tasks.task import Metrics, Task
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.data.reading.loader import EvalLoader, MicroBatch
from convmlp_platform.distributed import World, joined_world
from convmlp_platform.engine.engine import Engine
from convmlp_platform.errors import ConfigError
from convmlp_platform.evaluation.build_subject import Prepared, build_loaded_task, prepared
from convmlp_platform.evaluation.extra_figures import (
    PermutedPixels,
    hardware_of,
    measure,
    read_real_labels,
    real_accuracy,
)
from convmlp_platform.evaluation.findings import (
    ClassificationWatch,
    DetectionWatch,
    EvaluationFindings,
    FirstImages,
    Samples,
    SegmentationWatch,
    Watch,
)
from convmlp_platform.evaluation.report.result_folder import staging, write_result
from convmlp_platform.evaluation.result import DatasetEntry, EvaluationResult, ModelEntry, Throughput
from convmlp_platform.evaluation.subject import PERMUTED
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.environment_tags import environment_tags
from convmlp_platform.training.build import parts as build
from convmlp_platform.training.build.build_transforms import order_of
from convmlp_platform.training.evaluation.evaluate import evaluate
from data_prep.storage.urls import shown

Say = Callable[[str], None]
_DETECTION_SIDES = 1280 / 800
"""Of the images that the papers count multiply-accumulates for."""
_TELL_EVERY_S = 20.0


@dataclass
class _Watchers:
    """All that looks at the batches of an evaluation."""

    classes: Watch
    permuted: PermutedPixels
    first: FirstImages
    samples: Samples | None

    def update(self, batch: MicroBatch, outputs: Any, targets: Any) -> None:
        self.first.update(batch)
        self.classes.update(batch, outputs, targets)
        if self.samples is not None:
            self.samples.update(batch, outputs, targets)
        self.permuted.update(batch)


def run_evaluation(job: EvaluateJob, say: Say) -> EvaluationResult:
    """Evaluate the job's model on its images, each once, and write the folder `output.path`/`name`.

    Args:
        job: with resolved paths.
        say: gets a line of progress now and then.

    Raises:
        PlatformError: for all that a user can fix.
    """
    with (
        joined_world(use_gpu=job.launch.use_gpu is not False) as world,
        tempfile.TemporaryDirectory(prefix="convmlp-model-") as downloads,
    ):
        parts = prepared(job, Path(downloads))
        task = build_loaded_task(job, parts, say)
        model = _model_entry(job, parts, task)
        engine = build.build_engine(parts.training, task, parts.manifest, world)
        loader = build.build_eval_loader(
            parts.training, parts.manifest, RunFolder(Path(job.output.path) / job.name, ""), world
        )
        say(f"{job.name}: {parts.subject.found}, {len(loader.split):,} images on {world.device}")
        metrics = task.metrics()
        watchers = _watchers(job, parts, task, engine, loader, metrics)
        started = time.monotonic()
        found = evaluate(engine, loader, metrics, _progress(loader, say), watchers.update)
        seconds = time.monotonic() - started
        scores = {name.removeprefix("eval/"): value for name, value in found.items()}
        scores = _in_order(scores | _real(job, loader, watchers))
        findings = watchers.classes.findings()
        result = EvaluationResult(
            name=job.name,
            task=parts.subject.task.name,
            model=model,
            dataset=_dataset_entry(job, parts, loader),
            metrics=scores,
            per_class=findings.per_class if job.evaluate.per_class else [],
            throughput=_throughput(job, engine, watchers, say),
            permutation=watchers.permuted.result(),
            settings=_settings(job, parts),
            hardware=hardware_of(world.device),
            seconds=seconds,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            **_provenance(),
        )
        return _written(job, result, findings, watchers, world)


def _watchers(
    job: EvaluateJob, parts: Prepared, task: Task, engine: Engine, loader: EvalLoader, metrics: Metrics
) -> _Watchers:
    classes, kind, wanted = parts.manifest.classes, parts.manifest.task, job.evaluate
    watch: Watch
    if kind == "detection":
        watch = DetectionWatch(classes, cast(CocoMetrics, metrics))
    else:
        watch = ClassificationWatch(classes) if kind == "classification" else SegmentationWatch(classes)
    size = parts.subject.image_size
    applied = order_of(parts.subject.augment, size)
    permuted = PermutedPixels(engine, wanted.permutation, task.metrics, size, applied)
    needed = max(wanted.throughput.batch_sizes, default=0)
    return _Watchers(
        watch,
        permuted,
        FirstImages(min(needed, 32) if kind != "classification" else needed),
        Samples(loader.split) if wanted.pictures else None,
    )


def _progress(loader: EvalLoader, say: Say) -> Callable[[], None]:
    """Says how far the evaluation is, if it takes long."""
    done, started, said = 0, time.monotonic(), time.monotonic()

    def progress() -> None:
        nonlocal done, said
        done = min(done + loader.batch_size, len(loader.split))
        if time.monotonic() - said > _TELL_EVERY_S:
            said = time.monotonic()
            say(f"  {done:,} of {len(loader.split):,} images, {done / (said - started):,.1f} a second")

    return progress


def _model_entry(job: EvaluateJob, parts: Prepared, task: Task) -> ModelEntry:
    subject = parts.subject
    side = subject.image_size
    size = (
        (side, round(side * _DETECTION_SIDES / 32) * 32)
        if parts.manifest.task == "detection"
        else (side, side)
    )
    return ModelEntry(
        given=job.model.source,
        pinned=subject.found.pinned,
        kind=subject.found.kind,
        weights_sha256=subject.found.lineage.get("init.weights_sha256"),
        name=subject.name,
        parameters=count_parameters(task.model),
        macs=_macs(task, size),
        macs_size=size,
        image_size=side,
        num_classes=subject.num_classes,
        lineage=subject.found.lineage,
    )


def _macs(task: Task, size: tuple[int, int]) -> int | None:
    """None for a network of timm's that can't be counted (custom operators)."""
    try:
        return count_task_macs(task.model, size)
    except (RuntimeError, NotImplementedError):
        return None


def _dataset_entry(job: EvaluateJob, parts: Prepared, loader: EvalLoader) -> DatasetEntry:
    return DatasetEntry(
        name=parts.manifest.name,
        digest=parts.manifest.digest,
        split=job.data.split,
        images=len(loader.split),
        format=job.data.format,
        path=shown(job.data.path),
    )


def _real(job: EvaluateJob, loader: EvalLoader, watchers: _Watchers) -> dict[str, float]:
    if job.evaluate.real_labels is None:
        return {}
    if not isinstance(watchers.classes, ClassificationWatch):
        raise ConfigError("evaluate.real_labels: ReaL labels are for classification")
    samples, _, said = watchers.classes.arrays()
    keys = [loader.split.key(sample) for sample in samples.tolist()]
    share, counted = real_accuracy(read_real_labels(Path(job.evaluate.real_labels)), keys, said)
    return {"real_top1": 100.0 * share, "real_images": float(counted)}


def _in_order(scores: dict[str, float]) -> dict[str, float]:
    """Figures first, the loss last."""
    return {name: value for name, value in scores.items() if name != "loss"} | {"loss": scores["loss"]}


def _throughput(job: EvaluateJob, engine: Engine, watchers: _Watchers, say: Say) -> Throughput | None:
    section = job.evaluate.throughput
    if not section.batch_sizes:
        return None
    say(f"  timing {section.batches} batches of each of {', '.join(map(str, section.batch_sizes))} images")
    return measure(engine, watchers.first.images, section)


def _settings(job: EvaluateJob, parts: Prepared) -> dict[str, Any]:
    subject = parts.subject
    images = {
        name: getattr(subject, name) for name in ("image_size", "crop_pct", "interpolation", "mean", "std")
    }
    permuted = subject.augment.model_dump(include=PERMUTED)
    trained = {"trained_on": permuted} if permuted["permute"] != "none" else {}
    return job.evaluate.model_dump(mode="json") | {"images": images} | trained


def _provenance() -> dict[str, Any]:
    tags = environment_tags()
    versions = {
        name.removesuffix(".version"): value for name, value in tags.items() if name.endswith(".version")
    }
    commit = tags.get("git.commit")
    dirty = " (with changes)" if commit and tags.get("git.dirty") == "true" else ""
    return {"git_commit": commit and commit + dirty, "versions": versions}


def _written(
    job: EvaluateJob,
    result: EvaluationResult,
    findings: EvaluationFindings,
    watchers: _Watchers,
    world: World,
) -> EvaluationResult:
    assert world.is_main
    with staging(Path(job.output.path), job.name) as folder:
        return write_result(job, result, findings, watchers.samples, watchers.classes.classes, folder)
