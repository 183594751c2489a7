"""Pods, GPUs, CPUs, memory and disk of a job.

Memory follows from what `convmlp check` estimates for a worker (`training.preflight.memory`):

    each worker   a process with torch (and CUDA's part of the host), its agent and fork server     HOST_GIB
                + reader processes                                                                  READER_GIB each
                + a copy of the state, from which a checkpoint is written in the background         states
                + on CPUs: weights, gradients, optimizer, activations                               states + activations
    each pod      HEADROOM times that
                + /dev/shm, which counts against the limit: Ray's object store and readers' batches
                + Ray's own processes                                                               RAY_GIB

Measured: a training process on CPU, without readers, and the process that tells MLflow, 0.8 GiB at most together (PSS;
ConvMLP-tiny on digits, torch 2.15).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from convmlp_platform.config.automatic import with_stand_ins
from convmlp_platform.config.evaluate_job import EvaluateJob
from convmlp_platform.config.promote_job import PromoteJob
from convmlp_platform.config.schema import Job, PrepareJob, TrainJob
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.kubernetes.fitting import Workers, count_workers
from convmlp_platform.kubernetes.graces import SPOT_WORKER, WORKER, Grace
from convmlp_platform.kubernetes.options import RenderOptions
from data_prep.console import counted
from data_prep.storage.urls import is_url

GIB = 2**30
OBJECT_STORE_BYTES = 512 * 2**20
HOST_GIB, CUDA_HOST_GIB, READER_GIB, RAY_GIB = 1.5, 2.5, 0.75, 1.0
HEADROOM = 1.25
AUTO_CPUS_A_GPU, AUTO_CPUS = 8, 4
"""Of a pod whose job leaves them to machines: beside each GPU; without any."""
_PREPARE_CPUS, _PREPARE_GIB_A_CPU = 4, 2.0
_EVALUATE_GIB = 6.0
_TMP_GIB = {False: 2, True: 8}
"""Of a pod without GPUs, of one with: Ray's sockets and logs, and what else writes to /tmp."""
_CACHE_GIB = {False: 1, True: 4}
"""The same, of the home folder without a remote dataset: kernels that torch, Triton and DeepSpeed compile."""
_DISK_GIB = 1
"""The rest: the container's own layer and its log."""


@dataclass(frozen=True, kw_only=True)
class PodSizes:
    """Of each worker pod: counts, CPU cores, GiB; and how many pods. Of the head: CPU cores and GiB."""

    workers: Workers
    gpus: int
    cpus: int
    memory: int
    shm: int
    tmp: int
    cache: int
    head_cpus: int
    head_memory: int

    @property
    def disk(self) -> int:
        """GiB of the node's disk that the pod may fill: its folders for /tmp and caches, and a rest."""
        return self.tmp + self.cache + _DISK_GIB


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """All that manifests are made of.

    Args:
        entrypoint: the command on the head.
        files: name → text of the job files that come along; empty: the image holds them.
    """

    name: str
    kind: str
    entrypoint: str
    options: RenderOptions
    sizes: PodSizes
    files: dict[str, str] = field(default_factory=dict)

    @property
    def grace(self) -> Grace:
        """Of the worker pods."""
        return SPOT_WORKER if self.options.spot else WORKER


def pod_sizes(job: Job, options: RenderOptions) -> PodSizes:
    """The sizes of a job that has no `fitting_problems`.

    Raises:
        ConfigError, ValueError: the job's model can't be made.
    """
    workers, gpus = count_workers(job, options), options.gpus_per_pod
    cpus = options.cpus_per_pod or _cpus(job) * max(1, gpus)
    shm = math.ceil((OBJECT_STORE_BYTES + _batch_bytes(job) * max(1, gpus)) / GIB + 0.25)
    memory = options.memory_gib or math.ceil(_memory_gib(job, cpus, gpus) + shm + RAY_GIB)
    has_gpus = gpus > 0
    return PodSizes(
        workers=workers,
        gpus=gpus,
        cpus=cpus,
        memory=memory,
        shm=shm,
        tmp=_TMP_GIB[has_gpus],
        cache=max(_CACHE_GIB[has_gpus], _remote_cache_gib(job)),
        head_cpus=2 if has_gpus else 1,
        head_memory=8 if has_gpus else 4,
    )


def size_lines(plan: JobPlan) -> Iterator[str]:
    """The sizes for people."""
    sizes, options = plan.sizes, plan.options
    workers = sizes.workers
    each = f"{counted(sizes.gpus, 'GPU')}, " if sizes.gpus else ""
    fewest = f", at least {workers.least_pods}" if workers.least_pods < workers.pods else ""
    yield (
        f"pods     {workers.pods} of workers{fewest}, each {each}{counted(sizes.cpus, 'CPU')}, {sizes.memory} GiB of "
        f"memory with {sizes.shm} GiB of /dev/shm, {sizes.disk} GiB of disk"
    )
    first = ", which comes first and asks for the others" if options.autoscaled else ""
    yield f"         and a head of {counted(sizes.head_cpus, 'CPU')}, {sizes.head_memory} GiB{first}"


def _cpus(job: Job) -> int:
    """CPUs of one worker; of a preparation's pod."""
    if isinstance(job, TrainJob):
        return job.launch.cpus_per_worker
    if isinstance(job, EvaluateJob | PromoteJob):
        return job.launch.cpus
    if isinstance(job, SweepJob):
        return int((job.launch or _trial(job).launch).cpus_per_worker)
    return _PREPARE_CPUS


def _memory_gib(job: Job, cpus: int, gpus: int) -> float:
    if isinstance(job, PrepareJob):
        return _PREPARE_GIB_A_CPU * cpus
    if isinstance(job, EvaluateJob | PromoteJob):
        return (_EVALUATE_GIB + CUDA_HOST_GIB * bool(gpus)) * HEADROOM
    from convmlp_platform.training.preflight.memory import estimate_memory  # brings torch

    train = _trial(job) if isinstance(job, SweepJob) else job
    estimate = estimate_memory(train, train.model.num_classes or 1000)
    each = HOST_GIB + READER_GIB * train.data.num_workers + estimate.states / GIB
    each += CUDA_HOST_GIB if gpus else estimate.total / GIB
    return each * HEADROOM * max(1, gpus)


def _batch_bytes(job: Job) -> int:
    """Shared memory of one worker's readers: each has two micro-batches on their way, the training process two more."""
    if not isinstance(job, TrainJob | SweepJob):
        return 0
    train = _trial(job) if isinstance(job, SweepJob) else job
    if not train.data.num_workers:
        return 0
    side = max(train.data.image_size, *train.task.short_sides, 0)
    # A detector's images keep their shape: a wide one's, as COCO has them.
    pixels = side**2 * 8 // 5 if train.task.dataset == "detection" else side**2
    return (2 * train.data.num_workers + 2) * train.training.micro_batch_size * 3 * 4 * pixels


def _remote_cache_gib(job: Job) -> int:
    if isinstance(job, TrainJob) and is_url(job.data.path):
        return math.ceil(job.data.cache_bytes / GIB * 1.1)
    return 0


def _trial(job: SweepJob) -> TrainJob:
    from convmlp_platform.config.load import parse_job

    trial = parse_job(with_stand_ins({"name": job.name, **job.job}), "job")
    assert isinstance(trial, TrainJob)  # the sweep's schema sees to it
    return trial
