"""One registered version on one split, in a process of its own: nothing of a training's memory can help it.

    python -m convmlp_platform.promotion.measure REQUEST.json ANSWER

The answer is one line of JSON (latency, or an error as it crosses processes), then the outcomes as `outcomes.to_bytes`.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from convmlp.tasks.coco_metrics import CocoMetrics
from convmlp.transforms.joint_view import IGNORED
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.load import parse_job
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.distributed import joined_world
from convmlp_platform.errors import ErrorRecord, LaunchError, PlatformError, recorded
from convmlp_platform.evaluation.build_subject import build_loaded_task, prepared
from convmlp_platform.evaluation.extra_figures import measure as time_batches
from convmlp_platform.evaluation.findings import FirstImages
from convmlp_platform.promotion.outcomes import (
    ClassificationOutcomes,
    DetectionOutcomes,
    Outcomes,
    SegmentationOutcomes,
    from_bytes,
    to_bytes,
)
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.training.build import parts as build
from convmlp_platform.training.evaluation.evaluate import evaluate
from data_prep import console

Say = Callable[[str], None]


def measure(job: EvaluateJob, say: Say) -> tuple[Outcomes, float | None]:
    """Evaluate `model.from` on every image of the split, each once; what it said, and its latency in milliseconds.

    Args:
        job: with resolved paths, of one registered version.

    Raises:
        PlatformError: it can't be loaded, isn't what was registered, or is of another task or other classes.
    """
    with (
        joined_world(use_gpu=job.launch.use_gpu is not False) as world,
        tempfile.TemporaryDirectory(prefix="convmlp-model-") as downloads,
    ):
        parts = prepared(job, Path(downloads))
        task = build_loaded_task(job, parts, say)
        engine = build.build_engine(parts.training, task, parts.manifest, world)
        folder = RunFolder(Path(job.output.path) / job.name, "")
        loader = build.build_eval_loader(parts.training, parts.manifest, folder, world)
        say(f"measuring {parts.subject.found.pinned} on {len(loader.split):,} images of {job.data.split}")
        metrics = task.metrics()
        watch = _watch(parts.manifest.task, parts.manifest.num_classes, metrics)
        first = FirstImages(1)

        def look(batch: MicroBatch, outputs: Any, targets: Any) -> None:
            first.update(batch)
            watch.update(batch, outputs, targets)

        loss = evaluate(engine, loader, metrics, lambda: None, look)["eval/loss"]
        latency = None
        if job.evaluate.throughput.batch_sizes:
            latency = (
                1000.0 * time_batches(engine, first.images, job.evaluate.throughput).rows[0].median_seconds
            )
        return watch.outcomes(loss), latency


class _Classification:
    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._columns: list[tuple[Tensor, ...]] = []

    def update(self, batch: MicroBatch, outputs: Tensor, targets: Tensor) -> None:
        logits = outputs.detach().double().cpu()
        sure, said = logits.softmax(1).max(1)
        loss = torch.nn.functional.cross_entropy(logits, targets.cpu(), reduction="none")
        self._columns.append((batch.sample_ids.clone(), targets.cpu(), said, sure, loss))

    def outcomes(self, loss: float) -> Outcomes:
        samples, truth, said, sure, losses = (
            torch.cat(column).numpy() for column in zip(*self._columns, strict=True)
        )
        order = np.argsort(samples, kind="stable")
        return ClassificationOutcomes(
            samples[order], self.num_classes, loss, truth[order], said[order], sure[order], losses[order]
        )


class _Segmentation:
    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._samples: list[int] = []
        self._rows: list[tuple[Any, ...]] = []

    def update(self, batch: MicroBatch, outputs: list[Tensor], targets: list[Tensor]) -> None:
        self._samples += batch.sample_ids.tolist()
        for said, truth in zip(outputs, targets, strict=True):
            labelled = truth != IGNORED
            own, other = truth[labelled].cpu().numpy().astype(np.int64), said[labelled].cpu().numpy()
            counted = (own[own == other], own, other)
            self._rows.append(tuple(np.bincount(one, minlength=self.num_classes) for one in counted))

    def outcomes(self, loss: float) -> Outcomes:
        order = np.argsort(self._samples, kind="stable")
        both, true, said = (np.stack(column)[order] for column in zip(*self._rows, strict=True))
        samples = np.asarray(self._samples, np.int64)[order]
        return SegmentationOutcomes(samples, self.num_classes, loss, both, true, said)


class _Detection:
    def __init__(self, num_classes: int, metrics: CocoMetrics) -> None:
        self.num_classes, self._metrics = num_classes, metrics
        self._samples: list[int] = []
        self._images: list[int] = []

    def update(self, batch: MicroBatch, outputs: Any, targets: list[dict[str, Any]]) -> None:
        self._samples += batch.sample_ids.tolist()
        self._images += [int(target["image_id"]) for target in targets]

    def outcomes(self, loss: float) -> Outcomes:
        order = np.argsort(self._samples, kind="stable")
        place = {self._images[number]: position for position, number in enumerate(order.tolist())}
        label = {number: place for place, number in enumerate(self._metrics.class_ids)}
        masks = "segm" in self._metrics.kinds
        objects = np.zeros((len(order), self.num_classes), np.int64)
        rows: list[tuple[int, int, float, Any, Any]] = []
        for one in self._metrics.matches("segm" if masks else "bbox"):
            image, kind = place[one["image_id"]], label[one["category_id"]]
            objects[image, kind] += int((np.asarray(one["gtIgnore"]) == 0).sum())
            hit, ignored = np.asarray(one["dtMatches"]) > 0, np.asarray(one["dtIgnore"], bool)
            rows += [
                (image, kind, float(score), hit[:, number], ignored[:, number])
                for number, score in enumerate(one["dtScores"])
            ]
        none = np.zeros((0, 10), bool)
        return DetectionOutcomes(
            np.asarray(self._samples, np.int64)[order],
            self.num_classes,
            loss,
            np.array([row[0] for row in rows], np.int64),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.float64),
            np.stack([row[3] for row in rows]) if rows else none,
            np.stack([row[4] for row in rows]) if rows else none,
            objects,
            masks,
        )


def _watch(kind: str, num_classes: int, metrics: Any) -> _Classification | _Segmentation | _Detection:
    if kind == "detection":
        return _Detection(num_classes, cast(CocoMetrics, metrics))
    return _Classification(num_classes) if kind == "classification" else _Segmentation(num_classes)


def measure_apart(job: EvaluateJob, say: Say) -> tuple[Outcomes, float | None]:
    """`measure` in a child process of this one.

    Raises:
        PlatformError: as `measure`; LaunchError where the process ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="convmlp-measure-") as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer"
        request.write_text(job.model_dump_json())
        command = [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__]
        with subprocess.Popen(
            [*command, str(request), str(answer)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                say(line.rstrip("\n"))
        if not answer.exists():
            raise LaunchError(
                f"{job.model.source}: the process that measures it ended with exit code {child.returncode} and "
                "no answer"
            )
        return unpacked(answer.read_bytes())


def packed(job: EvaluateJob, say: Say) -> bytes:
    """`measure`'s answer, an error of ours included, as bytes for another process."""
    try:
        outcomes, latency = measure(job, say)
    except PlatformError as error:
        return json.dumps({"problem": recorded(error).to_json()}).encode() + b"\n"
    told = None if latency is None or not math.isfinite(latency) else latency
    return json.dumps({"latency_ms": told}).encode() + b"\n" + to_bytes(outcomes)


def unpacked(content: bytes) -> tuple[Outcomes, float | None]:
    """`measure`'s answer from `packed`'s bytes.

    Raises:
        PlatformError: it was one.
    """
    head, _, rest = content.partition(b"\n")
    told = json.loads(head)
    if "problem" in told:
        raise ErrorRecord.from_json(told["problem"]).error()
    return from_bytes(rest), told["latency_ms"]


def _main(request: str, answer: str) -> None:
    job = parse_job(json.loads(Path(request).read_text()), "job")
    assert isinstance(job, EvaluateJob)
    content = packed(job, console.say)
    draft = Path(f"{answer}.draft")
    draft.write_bytes(content)
    draft.rename(answer)


if __name__ == "__main__":
    _main(*sys.argv[1:])
