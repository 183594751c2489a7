"""strategy: deepspeed: ZeRO 1, 2 and 3 through `deepspeed.initialize`.

(Accelerate's DeepSpeed plugin, on CPU ranks, trains every rank alone.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

# Before the import: DeepSpeed looks for the accelerator then, and its log level is read once.
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "warning")

import deepspeed
from deepspeed.runtime.engine import DeepSpeedEngine as DeepSpeedWrapper
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from convmlp_platform.engine import deepspeed_internals as internals
from convmlp_platform.engine.ema import WeightAverage
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.optimizer_state import SEPARATOR
from convmlp_platform.engine.types import DEEPSPEED_BUCKET, OptimizerFactory, Pieces, Run, State
from convmlp_platform.torch_internals import norms_of

internals.skip_shared_memory_kernel()


class DeepSpeedEngine(Engine):
    """ZeRO: stage 1 shards optimizer state, 2 gradients too, 3 weights too.

    bf16 and fp16 are DeepSpeed's torch_autocast, which keeps weights and BatchNorm's buffers in fp32. The
    optimizer is always one of torch's, handed over: DeepSpeed's own by name are compiled at the first start.

    Its own loss scaler for fp16 is taken out: it clips gradients that are still scaled, looks for overflows on each
    rank alone, and never lowers the scale (0.19.8). It can be told of another's scale.

    DeepSpeed's names beyond its documentation are in `deepspeed_internals`.
    """

    weights_keep_layout = False

    def prepare(self, task: nn.Module, make_optimizer: OptimizerFactory) -> tuple[Any, torch.optim.Optimizer]:
        self.stage = self.options.zero_stage
        deepspeed.init_distributed(dist_backend="nccl" if self.world.device.type == "cuda" else "gloo")
        optimizer = make_optimizer(task)
        wrapped, zero, _, _ = deepspeed.initialize(
            model=task, optimizer=optimizer, config=self._config(), dist_init_required=False
        )
        found = (type(wrapped), wrapped.dp_world_size, wrapped.zero_optimization_stage())
        if found != (DeepSpeedWrapper, self.world.size, self.stage):
            raise RuntimeError(
                f"DeepSpeed gave {found} where ZeRO-{self.stage} on {self.world.size} ranks was asked for"
            )
        self._zero, self._parameters = zero, dict(self.model.named_parameters())
        offload = wrapped.zero_offload_optimizer()
        self._offloads = offload is not None and offload.device != "none"
        internals.take_over_loss_scale(zero, self.loss_scale.scale)
        return wrapped, zero.optimizer

    def _config(self) -> dict[str, Any]:
        precision = self.options.precision
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self.options.micro_batch_size,
            # Accumulation is ours: ranks may hold different numbers of micro-batches.
            "gradient_accumulation_steps": 1,
            "train_batch_size": self.options.micro_batch_size * self.world.size,
            "gradient_clipping": self.options.clip_grad_norm or 0.0,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": sys.maxsize,
            # Its buffer is taken whole: DeepSpeed's default would be 2 GB for a network of 40 MB.
            "zero_optimization": {
                "stage": self.stage,
                "reduce_bucket_size": min(DEEPSPEED_BUCKET, parameters),
            },
        }
        if self.stage == 3:
            # Small weights that stay gathered would miss the exchange with their moving average.
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        if precision != "fp32":
            config["torch_autocast"] = {
                "enabled": True,
                "dtype": "bfloat16" if precision == "bf16" else "float16",
            }
        return _merged(config, self.options.deepspeed)

    def forward_context(self, last: bool) -> AbstractContextManager[Any]:
        self.wrapped.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._zero.override_loss_scale(self.loss_scale.scale)
        self.wrapped.backward(loss)

    def gradient_norms(self) -> Sequence[Tensor]:
        """Of what ZeRO has reduced into its own buffers. Where these are offloaded it has the norms already."""
        if self._offloads:
            return internals.offloaded_norms(self._zero)
        return norms_of(internals.reduced_gradients(self._zero))

    def optimizer_step(self, grad_norm: float) -> None:
        self.wrapped.step()
        if not self.wrapped.was_step_applied():
            raise RuntimeError(f"DeepSpeed refused an update whose gradient norm is {grad_norm:g}")

    def drop_gradients(self) -> None:
        """Drops the gradients as ZeRO's own step does where it finds that they overflow."""
        if self.stage == 3:
            internals.drop_sharded_gradients(self._zero)
        else:
            internals.drop_reduced_gradients(self._zero, self._offloads)

    def local_tensors(self) -> State:
        parameters = {
            name: internals.partition(p) if self.stage == 3 else p
            for name, p in self.model.named_parameters()
        }
        buffers = {name: b for name, b in self.model.named_buffers() if b.is_floating_point()}
        return {**parameters, **buffers}

    def _gathered(self, modifier_rank: int | None = None) -> AbstractContextManager[Any]:
        """Within: every rank sees whole parameters; what `modifier_rank` changes reaches all."""
        if self.stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(list(self.model.parameters()), modifier_rank=modifier_rank)

    def exchange_with(self, average: WeightAverage) -> None:
        # After a forward pass ZeRO 3 still holds whole what the next one needs: that would miss the exchange.
        if self.stage == 3:
            self.wrapped.empty_partition_cache()
        super().exchange_with(average)

    def full_model_state(self) -> State:
        with self._gathered():
            return {
                name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()
            }

    @torch.no_grad()
    def load_full_model_state(self, state: State) -> None:
        with self._gathered(modifier_rank=0):
            self.model.load_state_dict(state)
        for name, parameter in self.model.named_parameters():
            self._set_master(parameter, state[name].to(parameter.device))

    def _set_master(self, parameter: Tensor, value: Tensor, slot: str | None = None) -> None:
        """Set this rank's part of the fp32 master weight, or of an optimizer slot."""
        if self.stage < 3:
            if slot is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, slot)
            return
        # The library's full setters fail where a parameter's size isn't a multiple of the world's.
        size = internals.partition(parameter).numel()
        padded = nn.functional.pad(value.flatten(), (0, size * self.world.size - value.numel()))
        own = padded.narrow(0, size * self.world.rank, size)
        if slot is None:
            safe_set_local_fp32_param(parameter, own)
        else:
            safe_set_local_optimizer_state(parameter, own, slot)

    def full_optimizer_state(self) -> State:
        slots = self._slots()
        self._link_optimizer_state()
        return {
            f"{name}{SEPARATOR}{slot}": _required(safe_get_full_optimizer_state(p, slot))
            .detach()
            .to("cpu", copy=True)
            for name, p in self.model.named_parameters()
            for slot in slots
        }

    def own_piece(self, name: str, local: Tensor) -> tuple[Tensor, Run | None] | None:
        """Stage 3 cuts a parameter's elements into equal runs, the last ones padded or empty."""
        parameter = self._parameters.get(name)
        if self.stage < 3 or parameter is None:
            return (local, None) if self.world.is_main else None
        start = self.world.rank * local.numel()
        shape, count = internals.whole_shape(parameter)
        real = min(local.numel(), count - start)
        return (local.flatten()[:real], (shape, start)) if real > 0 else None

    def own_slots(self) -> Pieces:
        slots = self._slots()
        self._link_optimizer_state()
        own: dict[str, tuple[Tensor, Run | None] | None] = {}
        for name, parameter in self._parameters.items():
            for slot in slots:
                if self.stage == 3:
                    local = _required(safe_get_local_optimizer_state(parameter, slot))
                    own[f"{name}{SEPARATOR}{slot}"] = self.own_piece(name, local)
                elif (fragment := internals.slot_fragment(parameter, slot)) is not None:
                    values, start = fragment
                    own[f"{name}{SEPARATOR}{slot}"] = values, (tuple(parameter.shape), start)
        return {key: piece for key, piece in own.items() if piece is not None}

    def _slots(self) -> list[str]:
        """The optimizer's slots of a parameter's own shape; none before the first update."""
        return sorted(
            {
                slot
                for flat, slots in self.optimizer.state.items()
                for slot, value in slots.items()
                if isinstance(value, Tensor) and value.shape == flat.shape
            }
        )

    def _link_optimizer_state(self) -> None:
        if self.stage < 3:
            internals.link_optimizer_state(self._zero)

    def load_full_optimizer_state(self, state: State, updates: int) -> None:
        slots = sorted({key.rsplit(SEPARATOR, 1)[1] for key in state})
        for group in self.optimizer.param_groups if self.stage < 3 else []:
            for flat in group["params"]:
                self._fill(flat, slots, updates)
        for flat in internals.master_partitions(self._zero) if self.stage == 3 else []:
            self._fill(flat, slots, updates)
        for group in self.optimizer.param_groups:
            if "step" in group:
                group["step"] = updates
        if not slots:
            return
        self._link_optimizer_state()
        for name, parameter in self.model.named_parameters():
            for slot in slots:
                self._set_master(parameter, state[f"{name}{SEPARATOR}{slot}"].to(parameter.device), slot)

    def _fill(self, flat: Tensor, slots: list[str], updates: int) -> None:
        """Empty slots of the right size for a flat partition, as the optimizer's first update would make them."""
        if slots:
            zeros = {slot: torch.zeros_like(flat) for slot in slots}
            self.optimizer.state[flat] = {"step": torch.tensor(float(updates)), **zeros}


def _required(value: Tensor | None) -> Tensor:
    if value is None:
        raise RuntimeError("DeepSpeed knows no optimizer state for a parameter of the model")
    return value


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, section by section."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
