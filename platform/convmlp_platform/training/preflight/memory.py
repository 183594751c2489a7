"""The cost of a model before it is built: its parameters, and the memory that a worker needs to train it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

import convmlp
from convmlp.model_cost import dense_part
from convmlp.models.backbone import HierarchicalBackbone
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.engine.types import DEEPSPEED_BUCKET
from convmlp_platform.training.build.build_transforms import max_side_of

FLOAT = 4
_SMALL = 64
"""Pixels: a side that our networks run on in no time, a multiple of their last feature map's stride."""
# State tensors of a parameter's shape that each optimizer keeps (timm's create_optimizer_v2).
OPTIMIZER_SLOTS = {"adamw": 2, "adam": 2, "sgd": 1}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one worker's device.

    `states` (weights, buffers, gradients, optimizer, moving average) follows from the strategy; `activations`
    is what autograd keeps for one micro-batch: an estimate, as Mask R-CNN's heads keep more for every region.
    `passing`: whole weights and gradients that a sharded strategy holds for a while, at their most; `copies`: weights
    in 16 bits under autocast, and those of a convolution's weight that its kernels work on: estimates, too.
    """

    num_parameters: int
    states: int
    activations: int
    passing: int = 0
    copies: int = 0

    @property
    def total(self) -> int:
        """All of it, bytes."""
        return self.states + self.activations + self.passing + self.copies


def estimate_memory(job: TrainJob, num_classes: int, model: nn.Module | None = None) -> MemoryEstimate:
    """Returns the memory that training `job` needs on each worker.

    Args:
        job: the training job.
        num_classes: of the dataset.
        model: the result of `build_on_meta`, if the caller has it already.

    Raises:
        ValueError: the model's name or options are wrong.
    """
    model = model or build_on_meta(job, num_classes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    activations = _saved_bytes_per_image(dense_part(model), _image_size(job)) * job.training.micro_batch_size
    # Convolutions and linear layers, whose inputs are most of it, keep 16-bit copies under autocast.
    share = 1.0 if job.engine.precision == "fp32" else 0.5
    states, passing = _state_bytes(job, parameters, buffers), _passing_bytes(job, model, parameters)
    return MemoryEstimate(parameters, states, int(activations * share), passing, _copied_bytes(job, model))


def build_on_meta(job: TrainJob, num_classes: int) -> nn.Module:
    """The job's model without memory for its weights (made on the CPU first: few models can be made on meta).

    Raises:
        ValueError: the model's name or options are wrong.
    """
    options: dict[str, Any] = dict(job.model.options)
    if job.model.drop_path_rate is not None:
        options["drop_path_rate"] = job.model.drop_path_rate
    if job.task.name == "classification":
        size = job.data.image_size
        return convmlp.create_model(job.model.name, num_classes, image_size=size, **options).to("meta")
    from convmlp_platform.training.build.build_task import with_pyramid

    return with_pyramid(job, num_classes, options).to("meta")


def _state_bytes(job: TrainJob, parameters: int, buffers: int) -> int:
    """ddp holds everything on every worker; ZeRO shards the optimizer (1), gradients (2), weights (3); FSDP
    all three. The moving average is kept in the same pieces as the weights."""
    engine, workers = job.engine, job.launch.num_workers
    stage = {"ddp": 0, "fsdp": 3, "deepspeed": engine.zero_stage}[engine.strategy]
    divisor = {
        part: workers if stage >= first else 1
        for part, first in (("optimizer", 1), ("gradients", 2), ("weights", 3))
    }
    weights = parameters / divisor["weights"]
    average = (weights + buffers) if job.training.ema_decay else 0
    optimizer = OPTIMIZER_SLOTS[job.optimizer.name] * parameters / divisor["optimizer"]
    return int(FLOAT * (weights + buffers + parameters / divisor["gradients"] + optimizer + average))


def _passing_bytes(job: TrainJob, model: nn.Module, parameters: int) -> int:
    """FSDP gathers a block and the one before it, while it has the gradients of the block and those that the block
    after it scatters; what is in no block of its own is whole throughout, with its gradients. ZeRO gathers gradients
    in a buffer, under autocast in one for each of two types; its stage 3 keeps all weights whole that it used."""
    if job.engine.strategy == "ddp":
        return 0
    if job.engine.strategy == "deepspeed":
        buffers = 1 if job.engine.precision == "fp32" else 2
        whole = parameters if job.engine.zero_stage == 3 else 0
        return FLOAT * (buffers * min(DEEPSPEED_BUCKET, parameters) + whole)
    from convmlp_platform.engine.fsdp import sharded_blocks

    blocks = [0, *(sum(p.numel() for p in block.parameters()) for block in sharded_blocks(model)), 0]
    rest = parameters - sum(blocks)
    threes = zip(blocks, blocks[1:], blocks[2:], strict=False)
    most = max((before + 2 * block + after for before, block, after in threes), default=0)
    return FLOAT * (2 * rest + most)


def _copied_bytes(job: TrainJob, model: nn.Module) -> int:
    """Autocast keeps each matrix and kernel in 16 bits from forward to backward. A convolution's backward has its
    weight and its gradient in the kernel's own order, and the gradient once more in torch's (oneDNN, measured)."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    kernels = 3 * max((p.numel() for p in weights if p.ndim == 4), default=0)
    if job.engine.precision == "fp32":
        return FLOAT * kernels
    return FLOAT // 2 * (sum(p.numel() for p in weights) + kernels)


def _image_size(job: TrainJob) -> tuple[int, int]:
    """Height and width of a training image; of a detector's, which keep their shape, a wide one's as COCO has them."""
    side = max(job.data.image_size, *job.task.short_sides, 0)
    return (side, min(max_side_of(job), side * 8 // 5)) if job.task.dataset == "detection" else (side, side)


def _saved_bytes_per_image(model: nn.Module, image_size: tuple[int, int]) -> int:
    """fp32 bytes that autograd keeps for one image, weights aside.

    The network runs without memory for its tensors, on "meta". There torch computes with Python functions that bring
    its compiler and sympy along, 3 s of CPU: ours of any image size run for real instead, on a small image.
    """
    if not isinstance(model, HierarchicalBackbone):
        return sum(_saved_bytes(model, image_size, "meta"))
    if hasattr(model, "fixed_image_size") or max(image_size) <= _SMALL:
        return sum(_saved_bytes(model, image_size, "cpu"))
    fixed, maps = _saved_bytes(model, (_SMALL, _SMALL), "cpu")
    return fixed + maps * math.prod(image_size) // _SMALL**2


def _saved_bytes(model: nn.Module, image_size: tuple[int, int], device: str) -> tuple[int, int]:
    """Bytes of the storages that forward saves, each once, for one image: vectors, such as BatchNorm's statistics,
    and what grows with the image."""
    weights = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype, device=device, requires_grad=tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    own = {id(storage): storage for storage in map(Tensor.untyped_storage, weights.values())}
    saved: dict[int, tuple[Any, bool]] = {}  # held, so that no later storage can be taken for one of them

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in own:
            saved[id(storage)] = storage, tensor.ndim == 1
        return tensor

    batch = 2  # BatchNorm at 1x1 refuses a single image in training mode
    model.train()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = functional_call(model, weights, (torch.zeros(batch, 3, *image_size, device=device),))
    del output
    vectors, maps = (
        sum(int(storage.nbytes()) for storage, is_vector in saved.values() if is_vector is kind)
        for kind in (True, False)
    )
    return vectors // batch, maps // batch
