"""What every strategy does the same way: the step, averages of weights and of BatchNorm statistics, state by name.

A strategy (ddp, fsdp, deepspeed) says only how its wrapper runs forward, backward and the optimizer, and how
full tensors are got out of it and put back.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from convmlp.pixels import Normalize
from convmlp_platform.distributed import World
from convmlp_platform.engine.batch_norm import BatchNormAverager
from convmlp_platform.engine.ema import WeightAverage

State = dict[str, Tensor]
Run = tuple[tuple[int, ...], int]
"""Which elements of a tensor a piece has, in row-major order: the full shape, and the first element."""
Pieces = dict[str, tuple[Tensor, Run | None]]
OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]
SeedFactory = Callable[[int, int], int]


class MicroBatch(Protocol):
    """What the engine needs of a micro-batch (data.loader has the real one)."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def number(self) -> int: ...
    @property
    def ghost(self) -> bool: ...


@dataclass(frozen=True)
class EngineOptions:
    """How a step is computed. `seed_for(step, number)` keys all randomness of a micro-batch's forward pass;
    `mean` and `std` normalise images that come as uint8 pixels (per RGB channel, of pixels in [0, 1])."""

    micro_batch_size: int
    num_micro_batches: int
    seed_for: SeedFactory
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    compile: bool = False
    channels_last: bool = True
    zero_stage: int = 2
    deepspeed: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class StepOutput:
    """`loss`: this rank's part of the step's mean loss (the sum over ranks is the mean), 0-d on the device;
    `grad_norm`: L2 norm of the whole gradient before clipping, or None where nothing measures it."""

    loss: Tensor
    grad_norm: Tensor | None


@dataclass
class EngineState:
    """All that a run's weights depend on, full fp32 tensors on the CPU by parameter name: the same under every
    strategy and world size. `optimizer` is keyed `name/slot` (slot: exp_avg, ...)."""

    model: State
    optimizer: State
    ema: State | None
    updates: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnState:
    """What this rank writes of a checkpoint: live tensors by group and name, nothing gathered or copied.

    `runs`: by group and name, for those that are only a run of the full tensor's elements. `changing`: names of what
    a forward pass changes; all else stands still until the next update.
    """

    groups: dict[str, State]
    runs: dict[str, dict[str, Run]]
    changing: frozenset[str]


class Engine(ABC):
    """Runs a task (one module: model and loss) under a strategy.

    Gradients are the mean over the global batch whatever the world size: each micro-batch's loss is weighed
    `world_size / num_micro_batches`, and wrappers average over ranks.
    """

    # Sharded strategies flatten weights (FSDP2 refuses others than contiguous ones); images alone are then
    # channels-last, which is what selects the kernels.
    weights_keep_layout = True
    every_rank_writes = True
    """Whether a checkpoint needs a part of every rank's, or rank 0 holds all."""

    def __init__(
        self, task: nn.Module, make_optimizer: OptimizerFactory, options: EngineOptions, world: World
    ) -> None:
        self.options, self.world, self.updates = options, world, 0
        self.before_update: Callable[[], None] = lambda: None
        self.normalize = Normalize(options.mean, options.std)
        self.model: nn.Module = task.model  # type: ignore[assignment]
        task.to(world.device)
        if options.channels_last and self.weights_keep_layout:
            task.to(memory_format=torch.channels_last)
        if options.compile:
            self.model.compile()
        self.task = task
        self.wrapped, self.optimizer = self.prepare(task, make_optimizer)
        self._batch_norms = BatchNormAverager(self.model)
        self.ema = WeightAverage(options.ema_decay, self.local_tensors()) if options.ema_decay else None

    @abstractmethod
    def prepare(self, task: nn.Module, make_optimizer: OptimizerFactory) -> tuple[Any, torch.optim.Optimizer]:
        """Wrap the task; returns the wrapper and the plain torch optimizer. Asserts world size and class."""

    @abstractmethod
    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch; only the `last` of a step need synchronise gradients."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None: ...

    @abstractmethod
    def optimizer_step(self) -> Tensor | None:
        """Clip, update, zero the gradients; returns the gradient's norm before clipping if it is known."""

    @abstractmethod
    def local_tensors(self) -> State:
        """The parts of parameters and float buffers that this rank holds, as live views."""

    @abstractmethod
    def full_model_state(self) -> State:
        """Full fp32 weights and buffers on the CPU (collective: every rank calls, every rank gets them)."""

    @abstractmethod
    def load_full_model_state(self, state: State) -> None: ...

    @abstractmethod
    def full_optimizer_state(self) -> State: ...

    @abstractmethod
    def load_full_optimizer_state(self, state: State, updates: int) -> None: ...

    @abstractmethod
    def own_piece(self, name: str, local: Tensor) -> tuple[Tensor, Run | None] | None:
        """What this rank writes of a parameter, a buffer, or a slot of its shape, given what it holds of it."""

    @abstractmethod
    def own_slots(self) -> Pieces:
        """What this rank writes of the optimizer's state, keyed `name/slot`."""

    def own_state(self) -> OwnState:
        """This rank's part of a checkpoint (not collective)."""
        names, local = self.model.state_dict().keys(), self.local_tensors()
        counts = {name: b for name, b in self.model.named_buffers() if name in names and name not in local}
        averages = self.ema.tensors if self.ema else {}
        held = {"model": local | counts} | ({"ema": averages | counts} if self.ema else {})
        pieces: dict[str, Pieces] = {"optimizer": self.own_slots()}
        for group, tensors in held.items():
            own = {name: self.own_piece(name, tensor) for name, tensor in tensors.items() if name in names}
            pieces[group] = {name: piece for name, piece in own.items() if piece is not None}
        return OwnState(
            {group: {name: tensor for name, (tensor, _) in own.items()} for group, own in pieces.items()},
            {group: {name: run for name, (_, run) in own.items() if run} for group, own in pieces.items()},
            frozenset(name for name, _ in self.model.named_buffers()),
        )

    def extra_state(self) -> dict[str, Any]:
        """What else the strategy must remember, as JSON values (the loss scaler's, under fp16)."""
        return {}

    def load_extra_state(self, extra: dict[str, Any]) -> None:  # noqa: B027 (most have none)
        """Undo `extra_state`."""

    def train_step(self, micro_batches: Sequence[MicroBatch], *, step: int, lr: float) -> StepOutput:
        """One optimizer update from this rank's micro-batches, at learning rate `lr`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.task.train()
        self._batch_norms.begin_step()
        loss_sum = torch.zeros((), device=self.world.device)
        for position, micro in enumerate(micro_batches):
            weight = 0.0 if micro.ghost else 1.0 / self.options.num_micro_batches
            seed_all(self.options.seed_for(step, micro.number))
            images, labels = self.to_device(micro)
            with self.forward_context(last=position == len(micro_batches) - 1):
                loss, _ = self.wrapped(images, labels)
                self.backward(loss.float() * (weight * self.world.size))
            loss_sum += loss.detach().float() * weight
            self._batch_norms.after_micro_batch(counts=not micro.ghost)
        self.before_update()
        grad_norm = self.optimizer_step()
        self._batch_norms.end_step(self.options.num_micro_batches)
        self.updates += 1
        if self.ema:
            self.ema.update(self.local_tensors())
        return StepOutput(loss_sum, grad_norm)

    @torch.no_grad()
    def eval_step(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Mean loss and logits [B, classes] of held-out images, in eval mode."""
        self.task.eval()
        images, labels = self.to_device(micro)
        with self.forward_context(last=True):
            loss, logits = self.wrapped(images, labels)
        return loss.float(), logits.float()

    def to_device(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """Images (normalised float32, channels-last if asked) and labels on the rank's device."""
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        images = micro.images.to(self.world.device, non_blocking=True, memory_format=layout)
        if images.dtype == torch.uint8:  # a quarter of the bytes to copy
            images = self.normalize(images)
        return images, micro.labels.to(self.world.device, non_blocking=True)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within: the model holds the moving average, if there is one."""
        if self.ema is None:
            yield
            return
        self.ema.swap(self.local_tensors())
        try:
            yield
        finally:
            self.ema.swap(self.local_tensors())

    def state(self) -> EngineState:
        """Everything, gathered (collective)."""
        with self.averaged_weights():
            averaged = self.full_model_state() if self.ema else None
        return EngineState(
            self.full_model_state(), self.full_optimizer_state(), averaged, self.updates, self.extra_state()
        )

    def load_state(self, state: EngineState) -> None:
        """Go on from `state`, which any strategy on any world size may have written (collective)."""
        if self.ema:
            self.load_full_model_state(state.ema if state.ema is not None else state.model)
            self.ema.reset(self.local_tensors())
        self.load_full_model_state(state.model)
        self.load_full_optimizer_state(state.optimizer, state.updates)
        self.load_extra_state(state.extra)
        self.updates = state.updates


def seed_all(key: int) -> None:
    """Key everything a forward pass may draw from: torch on every device, numpy and `random` (timm's mixup)."""
    torch.manual_seed(key & 0x7FFFFFFFFFFFFFFF)
    np.random.seed(key & 0xFFFFFFFF)  # timm's mixup draws from numpy's global generator
    random.seed(key)
