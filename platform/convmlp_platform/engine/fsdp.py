"""strategy: fsdp: torch's FSDP2 (`fully_shard`), directly, as it also runs on gloo.

(On CPU ranks Accelerate ignores its FSDP plugin and runs plain DDP instead.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.optimizer_state import (
    SEPARATOR,
    live_slots,
    load_optimizer_slots,
    optimizer_slots,
)
from convmlp_platform.engine.types import OptimizerFactory, Pieces, Run, State
from convmlp_platform.torch_internals import norms_of, scale_all

# Parameters below which a block is not worth a gathering of its own.
MIN_SHARDED_PARAMETERS = 50_000


class FsdpEngine(Engine):
    """Every rank holds 1 / world_size of weights, gradients and optimizer state.

    Weights stay fp32 and bf16 is autocast: FSDP's own mixed precision casts inputs but not BatchNorm's buffers.
    """

    weights_keep_layout = False

    def prepare(self, task: nn.Module, make_optimizer: OptimizerFactory) -> tuple[Any, torch.optim.Optimizer]:
        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        for block in sharded_blocks(self.model):
            fully_shard(block, mesh=mesh)
        # The root reshards too: otherwise an evaluation would leave whole weights in place of its shards.
        fully_shard(task, mesh=mesh, reshard_after_forward=True)
        if not isinstance(task, FSDPModule) or mesh.size() != self.world.size:
            raise RuntimeError(
                f"fully_shard gave {type(task).__name__} on {mesh.size()} of {self.world.size} ranks"
            )
        if whole := [name for name, p in task.named_parameters() if not isinstance(p, DTensor)]:
            raise RuntimeError(f"fully_shard left parameters unsharded: {whole}")
        self._parameters = dict(self.model.named_parameters())
        optimizer = make_optimizer(task)
        if isinstance(optimizer, torch.optim.SGD):  # torch 2.15 has no fused SGD for tensors in pieces
            for group in optimizer.param_groups:
                group["fused"] = False
        return task, optimizer

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        self.wrapped.set_requires_gradient_sync(last)
        dtype = torch.float16 if self.options.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.world.device.type, dtype, enabled=self.options.precision != "fp32")

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss * self.loss_scale.scale)

    def gradient_norms(self) -> Sequence[Tensor]:
        return norms_of(self._gradients())

    def optimizer_step(self, grad_norm: float) -> None:
        scale_all(self._gradients(), self.clip_factor(grad_norm))
        self.optimizer.step()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self) -> list[Tensor | None]:
        """This rank's shards of the gradient."""
        return [None if p.grad is None else _local(p.grad) for p in self._parameters.values()]

    def local_tensors(self) -> State:
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {name: _local(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}

    def full_model_state(self) -> State:
        return {
            name: _full(value).detach().to("cpu", copy=True)
            for name, value in self.model.state_dict().items()
        }

    @torch.no_grad()
    def load_full_model_state(self, state: State) -> None:
        own = self.model.state_dict()
        if own.keys() != state.keys():
            raise ValueError(
                f"the state's names differ from the model's: {sorted(own.keys() ^ state.keys())}"
            )
        for name, tensor in own.items():
            _local(tensor).copy_(_local(_like(state[name], tensor)))

    def full_optimizer_state(self) -> State:
        return optimizer_slots(self.optimizer, self.model, full=_full)

    def load_full_optimizer_state(self, state: State, updates: int) -> None:
        load_optimizer_slots(self.optimizer, self.model, state, updates, like=_like)

    def own_piece(self, name: str, local: Tensor) -> tuple[Tensor, Run | None] | None:
        """FSDP2 cuts a parameter into chunks of rows, as torch.chunk does: the last ranks may hold fewer or none."""
        parameter = self._parameters.get(name)
        if parameter is None:
            return (local, None) if self.world.is_main else None
        if not local.numel():
            return None
        rows, per_row = parameter.shape[0], parameter.numel() // parameter.shape[0]
        first_row = self.world.rank * -(-rows // self.world.size)
        return local.flatten(), (tuple(parameter.shape), first_row * per_row)

    def own_slots(self) -> Pieces:
        slots = live_slots(self.optimizer, self.model)
        own = {
            f"{name}{SEPARATOR}{slot}": self.own_piece(name, _local(v)) for (name, slot), v in slots.items()
        }
        return {key: piece for key, piece in own.items() if piece is not None}


def sharded_blocks(model: nn.Module) -> list[nn.Module]:
    """The elements of the model's lists and sequences that are large enough, outermost only."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            for element in child:
                inner = sharded_blocks(element)
                large = sum(p.numel() for p in element.parameters()) >= MIN_SHARDED_PARAMETERS
                found += inner or ([element] if large else [])
        else:
            found += sharded_blocks(child)
    return found


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(full: Tensor, parameter: Tensor) -> Tensor:
    """This rank's piece of a full tensor, cut as `parameter` is; every rank has read the same full tensor."""
    value = full.to(parameter.device, parameter.dtype)
    if not isinstance(parameter, DTensor):
        return value.clone()
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
