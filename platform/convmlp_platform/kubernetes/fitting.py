"""The reasons why a job can't run as the options say; and the settings by which it agrees with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from convmlp_platform.config.automatic import with_stand_ins
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.promote_job import PromoteJob
from convmlp_platform.config.schema import Job, PrepareJob, TrainJob
from convmlp_platform.config.sections.execution import CPU_PRECISIONS, LaunchSection
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.kubernetes.options import RenderOptions
from data_prep.storage.urls import is_url, scrubbed, shown

STORAGE = "/mnt/convmlp"
"""The shared volume in every pod, and CONVMLP_ROOT."""
CACHE = "~/"
_OUR_BUCKETS = ("s3://",)
_KEY = re.compile(r"[-._a-zA-Z0-9]+")


@dataclass(frozen=True)
class Workers:
    """Training processes of a job, and the fewest that it goes on with; of a preparation: pods."""

    most: int
    least: int
    pods: int
    least_pods: int


def count_workers(job: Job, options: RenderOptions) -> Workers:
    """How many workers and pods a job is given. A count that doesn't divide is rounded up; `fitting_problems` tells."""
    said = options.workers
    if isinstance(job, TrainJob):
        most = said or job.launch.num_workers
        least = options.min_workers or job.launch.min_workers or most
    else:
        most = least = said or (_trial_launch(job).num_workers if isinstance(job, SweepJob) else 1)
    each = max(1, options.gpus_per_pod)
    return Workers(most, least, -(-most // each), -(-least // each))


def launch_sets(job: Job, options: RenderOptions) -> list[str]:
    """The `--set` options by which the job asks for just what its pods have."""
    workers = count_workers(job, options)
    sets = []
    if isinstance(job, TrainJob):
        sets.append(f"launch.num_workers={workers.most}")
        if options.min_workers:
            sets.append(f"launch.min_workers={workers.least}")
    return [*sets, *gpu_sets(job.model_dump(include={"kind", "launch"}), options)]


def gpu_sets(values: dict[str, Any], options: RenderOptions) -> list[str]:
    """The `--set` option by which a job uses GPUs where its pods have some, and none else.

    Args:
        values: of the job file: its `kind`, and whether it has a `launch`.
    """
    gpu = "true" if options.gpus_per_pod else "false"
    if values.get("kind") == "sweep":
        return [f"{'launch' if values.get('launch') else 'job.launch'}.use_gpu={gpu}"]
    return [f"launch.use_gpu={gpu}"] if values.get("kind") in ("train", "evaluate", "promote") else []


def fitting_problems(job: Job, options: RenderOptions, path: Path) -> list[str]:
    """All reasons at once.

    Args:
        job: the job as its file and `--set` have it; its paths aren't resolved.
        path: of the job file, as the user named it.
    """
    return [
        *_count_problems(job, options),
        *_set_problems(job, options),
        *_launch_problems(job, options),
        *_place_problems(job, options),
        *_file_problems(options, path),
    ]


def _count_problems(job: Job, options: RenderOptions) -> Iterator[str]:
    workers, gpus = count_workers(job, options), options.gpus_per_pod
    if options.min_workers is not None and not isinstance(job, TrainJob):
        yield f"--min-workers {options.min_workers}: only a training goes on with fewer workers, not kind: {job.kind}"
        return
    if "autoscale" in options.overlays and not isinstance(job, TrainJob):
        yield (
            f"--overlay autoscale: kind: {job.kind} starts on the pods that are there, and asks for none: leave it out"
        )
    if isinstance(job, PrepareJob):
        if gpus:
            yield f"--gpus-per-pod {gpus}: a preparation uses no GPU: leave it out"
        return
    if isinstance(job, EvaluateJob | PromoteJob):
        if workers.most != 1 or gpus > 1:
            yield (
                f"--workers {workers.most} --gpus-per-pod {gpus}: kind: {job.kind} is the work of one worker with one "
                "GPU at most"
            )
        return
    if gpus and workers.most % gpus:
        lower = workers.most - workers.most % gpus
        fits = f"{lower} or {lower + gpus}" if lower else f"{gpus}"
        yield (
            f"{_said(options.workers, '--workers', workers.most)} in pods of {gpus} GPUs (--gpus-per-pod) leaves GPUs "
            f"of the last pod without a worker: {fits} fit"
        )
    if workers.least > workers.most:
        yield f"{_said(options.min_workers, '--min-workers', workers.least)} is more than --workers {workers.most}"
    elif gpus and workers.least % gpus and workers.least != workers.most:
        yield (
            f"{_said(options.min_workers, '--min-workers', workers.least)} isn't a multiple of --gpus-per-pod {gpus}: "
            "a pod comes and goes as a whole"
        )
    if isinstance(job, SweepJob):
        each = _trial_launch(job).num_workers
        if workers.most % each:
            yield f"--workers {workers.most} isn't a multiple of a trial's {each} (job.launch.num_workers)"


def _said(given: int | None, option: str, value: int) -> str:
    field = {"--workers": "launch.num_workers", "--min-workers": "launch.min_workers"}[option]
    return f"{option} {value}" if given is not None else f"{field} (={value})"


def _set_problems(job: Job, options: RenderOptions) -> Iterator[str]:
    ours = dict(one.split("=", 1) for one in launch_sets(job, options))
    origin = {"launch.num_workers": "--workers", "launch.min_workers": "--min-workers"}
    for one in options.sets:
        name, _, value = one.partition("=")
        if name in ours and value != ours[name]:
            decides = origin.get(name, "--gpus-per-pod")
            yield f"--set {one}: {decides} decides this, which makes it {ours[name]}: leave one out"
        if scrubbed(value) != value:
            yield (
                f"--set {name}={shown(value)}: has a password or a token in its URL, and a RayJob is for everybody to "
                "read who may list them: put it into a Secret"
            )


def _launch_problems(job: Job, options: RenderOptions) -> Iterator[str]:
    launch = _trial_launch(job) if isinstance(job, SweepJob) else job.launch
    if launch.address != "auto":
        yield (
            f"launch.address (={launch.address}): a rendered job brings its own cluster, which auto finds: leave it out"
        )
    if isinstance(job, TrainJob):
        yield from _placement_problems(job, options)
        if job.engine.precision == "fp16" and not options.gpus_per_pod:
            yield f"engine.precision: fp16 needs GPUs: give --gpus-per-pod, or {CPU_PRECISIONS}"
    uri = None if isinstance(job, SweepJob) else getattr(job.tracking, "uri", None)
    if uri is not None:
        yield (
            f"tracking.uri (={shown(uri)}): pods have MLFLOW_TRACKING_URI, which wins: leave it out"
            + ("" if options.external else ", or say where MLflow is with --overlay external-services")
        )


def _placement_problems(job: TrainJob, options: RenderOptions) -> Iterator[str]:
    workers, placement = count_workers(job, options), job.launch.placement
    if placement == "STRICT_PACK" and workers.pods > 1:
        yield (
            f"launch.placement: STRICT_PACK wants all {workers.most} workers in one pod, but there are {workers.pods} "
            f"pods: --gpus-per-pod {workers.most}, or use PACK"
        )
    if placement == "STRICT_SPREAD" and options.gpus_per_pod > 1:
        yield (
            f"launch.placement: STRICT_SPREAD wants a pod for each worker, but --gpus-per-pod {options.gpus_per_pod} "
            "puts several into one: --gpus-per-pod 1, or use SPREAD"
        )


def _place_problems(job: Job, options: RenderOptions) -> Iterator[str]:
    for field, place in _places(job):
        if is_url(place):
            if place.startswith(_OUR_BUCKETS) and not options.external:
                yield f"{field} (={shown(place)}): the pods have no keys for it: --overlay external-services gives them"
        elif place.startswith("~") or (
            PurePosixPath(place).is_absolute() and not PurePosixPath(place).is_relative_to(STORAGE)
        ):
            yield (
                f"{field} (={place}): is on no disk that pods share: give a path relative to {STORAGE}, their shared "
                "volume"
            )
    if isinstance(job, TrainJob) and is_url(job.data.path) and not job.data.cache_dir.startswith(CACHE):
        yield (
            f"data.cache_dir (={job.data.cache_dir}): pods have a disk for it below {CACHE}: leave it out, or "
            "name a folder there"
        )


def _places(job: Job) -> Iterator[tuple[str, str]]:
    """Dotted name and value of every place that a job reads or writes and that must be the same in all pods."""
    if isinstance(job, TrainJob):
        yield "data.path", job.data.path
        yield "checkpoint.path", job.checkpoint.path
        if job.checkpoint.store is not None:
            yield "checkpoint.store", job.checkpoint.store
        if job.model.init_from is not None and not job.model.init_from.startswith("models:/"):
            yield "model.init_from", job.model.init_from
    elif isinstance(job, PrepareJob):
        yield "output.path", str(job.output.path)
        if (path := getattr(job.source, "path", None)) is not None:
            yield "source.path", str(path)
    elif isinstance(job, EvaluateJob):
        yield "data.path", job.data.path
        yield "output.path", job.output.path
        if not job.model.source.startswith("models:/"):
            yield "model.from", job.model.source


def _file_problems(options: RenderOptions, path: Path) -> Iterator[str]:
    if not options.in_image and not _KEY.fullmatch(path.name):
        yield (
            f"the file's name, {path.name!r}, can't be a ConfigMap's key: rename it to letters, digits, dots, dashes "
            "and underscores"
        )
    if options.in_image and (path.is_absolute() or path.parts[:1] != ("jobs",)):
        yield "--from-image runs a job that the image holds, jobs/NAME.yaml: leave it out to send this file along"


def _trial_launch(job: SweepJob) -> LaunchSection:
    values = with_stand_ins(job.job).get("launch") or {}
    return job.launch or LaunchSection.model_validate(values)
