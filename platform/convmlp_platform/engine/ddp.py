"""strategy: ddp: torch's DistributedDataParallel through Accelerate."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradScalerKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.optimizer_state import (
    SEPARATOR,
    live_slots,
    load_optimizer_slots,
    optimizer_slots,
)
from convmlp_platform.engine.types import OptimizerFactory, Pieces, Run, State
from convmlp_platform.torch_internals import norms_of, scale_all


class DdpEngine(Engine):
    """Every rank holds all weights; gradients are averaged while backward runs."""

    gradients_are_whole = True
    every_rank_writes = False

    def prepare(self, task: nn.Module, make_optimizer: OptimizerFactory) -> tuple[Any, torch.optim.Optimizer]:
        mixed = "no" if self.options.precision == "fp32" else self.options.precision
        self.accelerator = Accelerator(
            # Without cpu=True on a machine without GPU, Accelerate trains every rank alone and says nothing.
            cpu=self.world.device.type == "cpu",
            mixed_precision=mixed,
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                GradScalerKwargs(enabled=False),
            ],
        )
        optimizer = make_optimizer(task)
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers; 2.11 knows only the old name.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            wrapped, _ = self.accelerator.prepare(task, optimizer)
        size, is_ddp = self.accelerator.num_processes, isinstance(wrapped, DistributedDataParallel)
        if size != self.world.size or (size > 1 and not is_ddp):
            raise RuntimeError(
                f"Accelerate gave a {type(wrapped).__name__} on {size} ranks "
                f"where DDP on {self.world.size} was asked for"
            )
        return wrapped, optimizer

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss * self.loss_scale.scale)

    def gradient_norms(self) -> Sequence[Tensor]:
        return norms_of([parameter.grad for parameter in self.model.parameters()])

    def optimizer_step(self, grad_norm: float) -> None:
        gradients = [parameter.grad for parameter in self.model.parameters()]
        scale_all(gradients, self.clip_factor(grad_norm))
        self.optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def local_tensors(self) -> State:
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}

    def full_model_state(self) -> State:
        return {name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()}

    def load_full_model_state(self, state: State) -> None:
        self.model.load_state_dict(state)

    def full_optimizer_state(self) -> State:
        return optimizer_slots(self.optimizer, self.model, full=lambda tensor: tensor)

    def load_full_optimizer_state(self, state: State, updates: int) -> None:
        load_optimizer_slots(
            self.optimizer,
            self.model,
            state,
            updates,
            like=lambda full, p: torch.empty_like(p, requires_grad=False).copy_(full),
        )

    def own_piece(self, name: str, local: Tensor) -> tuple[Tensor, Run | None] | None:
        return (local, None) if self.world.is_main else None

    def own_slots(self) -> Pieces:
        slots = live_slots(self.optimizer, self.model) if self.world.is_main else {}
        return {f"{name}{SEPARATOR}{slot}": (value, None) for (name, slot), value in slots.items()}
