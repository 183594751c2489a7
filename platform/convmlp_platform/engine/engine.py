"""The work that all strategies do alike: the step, averages of weights and of BatchNorm statistics, state by name.

A strategy (ddp, fsdp, deepspeed) says only how its wrapper runs forward, backward and the optimizer, and how
full tensors are got out of it and put back.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convmlp.transforms.pixels import Normalize
from convmlp_platform.distributed import World
from convmlp_platform.engine.batch_norm import BatchNormAverager
from convmlp_platform.engine.ema import WeightAverage
from convmlp_platform.engine.types import (
    Computed,
    EngineOptions,
    EngineState,
    LossScale,
    MicroBatchLike,
    OptimizerFactory,
    OwnState,
    Pieces,
    Run,
    State,
)

_NO_SPAN: AbstractContextManager[None] = nullcontext()


class Engine(ABC):
    """Runs a task (one module: model and loss) under a strategy.

    Gradients are the mean over the global batch whatever the world size: each micro-batch's loss is weighed
    `world_size / num_micro_batches`, and wrappers average over ranks.
    """

    # Sharded strategies flatten weights (FSDP2 refuses others than contiguous ones); images alone are then
    # channels-last, which is what selects the kernels.
    weights_keep_layout = True
    gradients_are_whole = False
    """Whether each rank holds the whole gradient, or a part of its own."""
    every_rank_writes = True
    """Whether a checkpoint needs a part of every rank's, or rank 0 holds all."""
    span: Callable[[str], AbstractContextManager[Any]] = staticmethod(lambda part: _NO_SPAN)
    """Around the parts of a step, "forward", "backward" and "optimizer": a profiler names its record by them."""

    def __init__(
        self, task: nn.Module, make_optimizer: OptimizerFactory, options: EngineOptions, world: World
    ) -> None:
        self.options, self.world, self.updates = options, world, 0
        self.before_update: Callable[[], None] = lambda: None
        self.on_micro_batch: Callable[[int], None] = lambda done: None
        self.loss_scale = LossScale(enabled=options.precision == "fp16")
        self.normalize = Normalize(options.mean, options.std)
        self.model: nn.Module = task.model  # type: ignore[assignment]
        task.to(world.device)
        if options.channels_last and self.weights_keep_layout:
            task.to(memory_format=torch.channels_last)
        if options.compile:
            task.compile()
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
    def backward(self, loss: Tensor) -> None:
        """Add to the gradients, times the loss scale."""

    @abstractmethod
    def gradient_norms(self) -> Sequence[Tensor]:
        """L2 norms of the pieces of the gradient that this rank holds after a step's last backward, times the loss
        scale."""

    @abstractmethod
    def optimizer_step(self, grad_norm: float) -> None:
        """Undo the loss scale, clip by the gradient's norm, update, drop the gradients."""

    @abstractmethod
    def drop_gradients(self) -> None:
        """As if there had been no backward, wherever gradients were accumulated or reduced to."""

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
        """Returns the piece that this rank writes of a parameter, a buffer, or a slot of its shape, given the part
        `local` that it holds; None where it writes none."""

    @abstractmethod
    def own_slots(self) -> Pieces:
        """Returns the pieces that this rank writes of the optimizer's state, keyed `name/slot`."""

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
        """Returns the other state that must be kept, as JSON values: the loss scale, under fp16."""
        return {"scaler": self.loss_scale.state()} if self.loss_scale.enabled else {}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Undo `extra_state`."""
        if "scaler" in extra:
            self.loss_scale.load(extra["scaler"])

    def compute(self, micro_batches: Sequence[MicroBatchLike], *, step: int) -> Computed:
        """Forward and backward of a step, to be followed by `update` or `refuse`. After `refuse` the same
        micro-batches give the same again: on a CPU, bit by bit."""
        self.task.train()
        self._batch_norms.begin_step()
        loss_sum, losses = torch.zeros((), device=self.world.device), []
        for position, micro in enumerate(micro_batches):
            weight = 0.0 if micro.ghost else 1.0 / self.options.num_micro_batches
            seed_all(self.options.seed_for(step, micro.number))
            images, targets = self.to_device(micro)
            with self.forward_context(last=position == len(micro_batches) - 1):
                with self.span("forward"):
                    loss, _ = self.wrapped(images, targets)
                with self.span("backward"):
                    self.backward(loss.float() * (weight * self.world.size))
            losses.append(loss.detach().float())
            if not micro.ghost:
                loss_sum += losses[-1] * weight
            self._batch_norms.after_micro_batch(counts=not micro.ghost)
            self.on_micro_batch(position + 1)
        return Computed(loss_sum, tuple(losses))

    def square_norm(self) -> Tensor:
        """This rank's part of the gradient's squared L2 norm, 0-d float64 on the device: the sum over ranks is the
        whole gradient's."""
        norms = [norm.to(self.world.device) for norm in self.gradient_norms()]
        total = torch.stack(norms).double().square().sum() if norms else torch.zeros((), dtype=torch.float64)
        shares = self.world.size if self.gradients_are_whole else 1
        return total.to(self.world.device) / (shares * self.loss_scale.scale**2)

    def update(self, lr: float, grad_norm: float) -> None:
        """Move the weights at learning rate `lr`, and all that follows them (collective)."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.before_update()
        with self.span("optimizer"):
            self.optimizer_step(grad_norm)
            self._batch_norms.end_step(self.options.num_micro_batches)
            self.updates += 1
            if self.ema:
                self.ema.update(self.local_tensors(), self.updates)
        self.loss_scale.updated()

    def refuse(self) -> None:
        """Leave everything as if the step had not been computed."""
        self.drop_gradients()
        self._batch_norms.undo_step()

    def absorb_overflow(self) -> bool:
        """After gradients that aren't finite: whether fp16's loss scale was too high, which is normal. It is lower
        then."""
        return self.loss_scale.overflowed()

    def clip_factor(self, grad_norm: float) -> float:
        """Returns the factor that undoes the loss scale and clips, in one multiplication."""
        limit = self.options.clip_grad_norm
        clip = 1.0 if limit is None else min(1.0, limit / (grad_norm + 1e-6))
        return clip / self.loss_scale.scale

    @torch.no_grad()
    def eval_step(self, micro: MicroBatchLike) -> tuple[Tensor, Any, Any]:
        """Of held-out images, in eval mode: mean loss, the task's outputs, and the targets on the rank's device."""
        self.task.eval()
        images, targets = self.to_device(micro)
        with self.forward_context(last=True):
            loss, outputs = self.wrapped(images, targets)
        return loss.float(), outputs, targets

    def to_device(self, micro: MicroBatchLike) -> tuple[Tensor | list[Tensor], Any]:
        """Images (normalised float32, channels-last if asked) and targets on the rank's device."""
        targets = _on_device(micro.targets, self.world.device)
        if isinstance(micro.images, Tensor):
            layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
            return self._image_to_device(micro.images, layout), targets
        layout = torch.preserve_format if self.options.channels_last else torch.contiguous_format
        return [self._image_to_device(image, layout) for image in micro.images], targets

    def _image_to_device(self, given: Tensor, layout: torch.memory_format) -> Tensor:
        image = given.to(self.world.device, non_blocking=True, memory_format=layout)
        if image.dtype == torch.uint8:  # a quarter of the bytes to copy
            return self.normalize(image)
        # Mixing writes into what it gets, and a step may be computed again.
        return image.clone() if image is given else image

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within: the model holds the moving average, if there is one."""
        if self.ema is None:
            yield
            return
        self.exchange_with(self.ema)
        try:
            yield
        finally:
            self.exchange_with(self.ema)

    def exchange_with(self, average: WeightAverage) -> None:
        """Swap the model's weights and their average (collective)."""
        average.swap(self.local_tensors())

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


def _on_device(targets: Any, device: torch.device) -> Any:
    """Tensors, also in lists and dictionaries; all else stays as it is."""
    if isinstance(targets, Tensor):
        return targets.to(device, non_blocking=True)
    if isinstance(targets, list):
        return [_on_device(target, device) for target in targets]
    if isinstance(targets, dict):
        return {name: _on_device(value, device) for name, value in targets.items()}
    return targets


def seed_all(key: int) -> None:
    """Key everything a forward pass may draw from: torch on every device, numpy and `random` (timm's mixup)."""
    torch.manual_seed(key & 0x7FFFFFFFFFFFFFFF)
    np.random.seed(key & 0xFFFFFFFF)  # timm's mixup draws from numpy's global generator
    random.seed(key)
