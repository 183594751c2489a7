"""The step, memory and cost of a job on other numbers of GPUs, from the speed of one: `convmlp check JOB --scale 8,64`.

docs/scaling.md has the model, what it leaves out, and how near it came to what was measured. Bytes follow from the
strategy; the network's figures are stated ones, unless others are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.training.preflight.memory import (
    FLOAT,
    OPTIMIZER_SLOTS,
    MemoryEstimate,
    build_on_meta,
    estimate_memory,
)
from convmlp_platform.training.step_plan import StepPlan

ASSUMED_FLOPS, ASSUMED_SHARE = 790e12, 0.4
"""Of one GPU whose speed nobody gave: an H200's bf16 matrix products as measured, and the share of it that a step of
these networks takes."""
_BACKWARD = 2 / 3
"""Of forward and backward: where gradients can be on their way while others are still computed."""
_BUCKET = 25 * 2**20
"""Bytes of DDP's last bucket, which nothing hides (torch's default)."""


@dataclass(frozen=True)
class Interconnect:
    """Bytes a second that each GPU sends, and receives as well, within a node and between nodes; seconds of a hop.

    The defaults are stated figures: NVLink 4 (450 GB/s each way) and a 400 Gbit/s adapter for each GPU, of both 80 %.
    """

    gpus_per_node: int = 8
    within: float = 0.8 * 450e9
    between: float = 0.8 * 50e9
    hop_s: float = 15e-6
    overlaps: bool = True
    """Whether communication and computing go on at once; on CPUs the same cores do both."""

    def gather_s(self, size: float, workers: int) -> float:
        """Seconds until each of the workers has all of `size` bytes of which each holds a part, or the other way round
        (reduce-scatter)."""
        if workers == 1:
            return 0.0
        rate = self.within if workers <= self.gpus_per_node else min(self.within, self.between)
        return size * (workers - 1) / workers / rate + self.hop_s * math.ceil(math.log2(workers))


@dataclass(frozen=True)
class Speed:
    """Seconds of one worker: forward and backward of a micro-batch, the update of all weights on one worker."""

    micro_batch_s: float
    update_s: float


@dataclass(frozen=True)
class Volumes:
    """Bytes of a step that are gathered or scattered, all workers' parts: `gradients` while backward runs, `weights`
    before forward and backward need them, `updated` after the update."""

    gradients: float
    weights: float
    updated: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.gradients + self.weights + self.updated


@dataclass(frozen=True)
class ScaledRun:
    """A job on `workers` GPUs. `batch` is its global batch, `raised` to a micro-batch a worker where the job's is less:
    another recipe then. `steps`: 0 where the dataset isn't known."""

    workers: int
    batch: int
    raised: bool
    micro_batches: int
    compute_s: float
    update_s: float
    exposed_s: float
    volumes: Volumes
    memory: MemoryEstimate
    steps: int

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.update_s + self.exposed_s

    @property
    def images_per_second(self) -> float:
        """Of all workers."""
        return self.batch / self.step_s

    @property
    def hours(self) -> float:
        """Of all steps: no evaluation, no start, nothing that goes wrong."""
        return self.steps * self.step_s / 3600


def volumes_of(job: TrainJob, parameters: int, micro_batches: int) -> Volumes:
    """What the job's strategy moves in a step of so many micro-batches a worker; all tensors are float32."""
    size = float(FLOAT * parameters)
    stage = 3 if job.engine.strategy == "fsdp" else job.engine.zero_stage
    if job.engine.strategy == "ddp":
        return Volumes(2 * size, 0.0, 0.0)
    # FSDP sums up within the worker first; ZeRO-2 and 3 give each micro-batch's gradients away.
    sent = 1 if job.engine.strategy == "fsdp" or stage == 1 else micro_batches
    if stage < 3:  # DeepSpeed sums a bucket up on all ranks, though each keeps its part (its average_tensor)
        return Volumes(2 * sent * size, 0.0, size)
    return Volumes(sent * size, 2 * micro_batches * size, 0.0)


def scaled(
    job: TrainJob, workers: int, speed: Speed, network: Interconnect, memory: MemoryEstimate, steps: int
) -> ScaledRun:
    """Returns the job on so many workers.

    Args:
        memory: of each of so many workers.
        steps: of the job with its own batch; 0 where that isn't known.
    """
    training = job.training
    batch = max(training.global_batch_size, workers * training.micro_batch_size)
    micro_batches = -(-batch // training.micro_batch_size // workers)
    volumes = volumes_of(job, memory.num_parameters, micro_batches)
    sharded = job.engine.strategy != "ddp"
    compute_s = micro_batches * speed.micro_batch_s
    return ScaledRun(
        workers=workers,
        batch=batch,
        raised=batch > training.global_batch_size,
        micro_batches=micro_batches,
        compute_s=compute_s,
        update_s=speed.update_s / (workers if sharded else 1),
        exposed_s=_exposed_s(volumes, workers, speed, micro_batches, network),
        volumes=volumes,
        memory=memory,
        steps=-(-steps * training.global_batch_size // batch),
    )


def _exposed_s(
    volumes: Volumes, workers: int, speed: Speed, micro_batches: int, network: Interconnect
) -> float:
    """Seconds of communication that no computing hides, the ranks' agreement included."""
    if workers == 1:
        return 0.0
    agreement = 2 * network.hop_s * math.ceil(math.log2(workers))
    gradients = network.gather_s(volumes.gradients, workers)
    weights = network.gather_s(volumes.weights, workers) if volumes.weights else 0.0
    if network.overlaps:
        last = network.gather_s(min(volumes.gradients, 2 * _BUCKET), workers)
        gradients = max(gradients - _BACKWARD * speed.micro_batch_s, last)
        weights = max(
            weights - micro_batches * speed.micro_batch_s, 0.1 * weights
        )  # a first block is waited for
    updated = network.gather_s(volumes.updated, workers) if volumes.updated else 0.0
    return gradients + weights + updated + agreement


def speed_of(job: TrainJob, model: nn.Module, images_per_second: float | None) -> tuple[Speed, str]:
    """One worker's speed, as given or assumed, and words for where it comes from.

    An update moves each weight, its gradient and its states at 4 TB/s; what is left of a step is computing.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    moved = (
        FLOAT
        * parameters
        * (3 + 2 * OPTIMIZER_SLOTS[job.optimizer.name] + (3 if job.training.ema_decay else 0))
    )
    update_s = moved / 4e12
    if images_per_second is not None:
        step_s = job.training.micro_batch_size / images_per_second
        return Speed(
            max(step_s - update_s, 0.0), update_s
        ), f"{images_per_second:,.0f} images/s on one GPU (given)"
    from convmlp.model_cost import count_macs, count_task_macs

    count = count_macs if job.task.name == "classification" else count_task_macs
    flops = 6.0 * count(model, job.data.image_size) * job.training.micro_batch_size
    micro_batch_s = flops / (ASSUMED_SHARE * ASSUMED_FLOPS)
    rate = job.training.micro_batch_size / (micro_batch_s + update_s)
    return Speed(micro_batch_s, update_s), (
        f"{rate:,.0f} images/s on one GPU (assumed: {ASSUMED_SHARE:.0%} of an H200's {ASSUMED_FLOPS / 1e12:.0f} "
        "TFLOP/s; measure one and say --images-per-second)"
    )


def scaling_lines(
    job: TrainJob, workers: Sequence[int], images_per_second: float | None, price: float | None
) -> Iterator[str]:
    """Lines of `convmlp check`: the job on each of these numbers of GPUs.

    Args:
        images_per_second: of one GPU, measured; None: assumed, which is said.
        price: of a GPU's hour; None: the job's, or no cost is told.

    Raises:
        PlatformError: the dataset can't be read.
        ValueError: the model can't be made.
    """
    from convmlp_platform.data.dataset.split import open_manifest

    manifest = open_manifest(job.data.path, job.data.digest)
    classes = job.model.num_classes or manifest.num_classes
    model, network = build_on_meta(job, classes), Interconnect()
    speed, source = speed_of(job, model, images_per_second)
    steps = StepPlan(job, manifest.splits[job.data.train_split].num_samples).stop_step
    price = job.launch.price_per_gpu_hour if price is None else price
    runs = []
    for count in workers:
        launch = job.launch.model_copy(update={"num_workers": count})
        memory = estimate_memory(job.model_copy(update={"launch": launch}), classes, model)
        runs.append(scaled(job, count, speed, network, memory, steps))
    yield f"scaling  {job.engine.strategy} from {source};"
    yield (
        f"         {network.within / 1e9:,.0f} GB/s within nodes of {network.gpus_per_node} GPUs, "
        f"{network.between / 1e9:,.0f} GB/s between (docs/scaling.md)"
    )
    cost = "" if price is None else f"{job.launch.currency:>12}"
    head = f"{'GPUs':>6}{'batch':>9} {'step':>11}{'exchange':>10}{'images/s':>12}{'memory':>12}{'hours':>9}"
    yield f"         {head}{cost}"
    for run in runs:
        spent = "" if price is None else f"{run.hours * run.workers * price:>12,.0f}"
        yield (
            f"         {run.workers:>6,}{run.batch:>9,}{'*' if run.raised else ' '}{1e3 * run.step_s:>8,.1f} ms"
            f"{run.exposed_s / run.step_s:>10.1%}{run.images_per_second:>12,.0f}{run.memory.total / 2**30:>8,.1f} GiB"
            f"{run.hours:>9,.1f}{spent}"
        )
    if any(run.raised for run in runs):
        yield "         * more than the job's, a micro-batch for each GPU: another recipe, over as many images"
    yield "         exchange: waiting for the network, of a step; hours: of steps alone, no evaluation, no restart"
