"""DeepSpeed's names that its documentation doesn't promise, and that `engine.deepspeed` can't do without.

Each is asked for in one function here. tests/.../engine/test_deepspeed_internals.py fails by name where an upgrade
takes one away or changes what it does. Tried with DeepSpeed 0.19.8. `zero` is what `deepspeed.initialize` returns as
the optimizer: a `DeepSpeedZeroOptimizer` (stages 1 and 2) or a `DeepSpeedZeroOptimizer_Stage3`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from torch import Tensor


def skip_shared_memory_kernel() -> None:
    """On the CPU accelerator DeepSpeed compiles a C++ op at its first start (28 s), used by inference alone."""
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]


def take_over_loss_scale(zero: Any, scale: float) -> None:
    """Take ZeRO's own scaler for fp16 out, and tell it of ours: see `engine.deepspeed.DeepSpeedEngine`."""
    zero.torch_autocast_gradscaler = None
    zero.override_loss_scale(scale)


def reduced_gradients(zero: Any) -> list[Tensor]:
    """This rank's parts of the gradient, as ZeRO has reduced them into its own buffers before an update.

    The public `safe_get_full_grad` gathers each parameter's from all ranks. Where the optimizer is offloaded, these
    buffers are empty: see `offloaded_norms`.
    """
    return [gradient for group in zero.averaged_gradients.values() for gradient in group]


def offloaded_norms(zero: Any) -> Sequence[Tensor]:
    """The norm of each parameter's part of the gradient, where the optimizer is offloaded, 0-d."""
    return [torch.as_tensor(norm) for norm in zero.norm_for_param_grads.values()]


def drop_sharded_gradients(zero: Any) -> None:
    """Stage 3: forget what backward has reduced, as its own step does where it finds an overflow."""
    zero._pre_step()
    zero._partition_all_parameters()
    zero._overflow_clean_up(zero.loss_scale)


def drop_reduced_gradients(zero: Any, offloads: bool) -> None:
    """Stages 1 and 2: the same."""
    zero.micro_step_id = INITIAL_MICRO_STEP_ID
    zero.zero_grad(set_to_none=True)
    zero._release_preflattened_grad_buffers()
    if offloads:
        zero._offload_accumulated_param_ids = set()
        zero.reset_cpu_buffers()
    else:
        for group in zero.averaged_gradients:
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None


def partition(parameter: Any) -> Tensor:
    """Stage 3: this rank's elements of a parameter, 1-D, the last rank's padded with zeros or all padding."""
    return parameter.ds_tensor


def whole_shape(parameter: Any) -> tuple[tuple[int, ...], int]:
    """Stage 3: shape and number of elements of the whole parameter."""
    return tuple(parameter.ds_shape), parameter.ds_numel


def slot_fragment(parameter: Any, slot: str) -> tuple[Tensor, int] | None:
    """Stages 1 and 2: this rank's run of an optimizer slot, 1-D, and the parameter's element at which it begins; None
    if the rank has none. The public `safe_get_full_optimizer_state` gathers the whole from all ranks."""
    held = parameter._hp_mapping
    return None if held is None else (held.get_optim_state_fragment(slot), held.lp_fragment_address.start)


def link_optimizer_state(zero: Any) -> None:
    """Stages 1 and 2: let `slot_fragment` and the `safe_*` functions see all of the optimizer's state. ZeRO does that
    once, after the first update of the first parameter group, when the others have none yet."""
    zero._hp_optimizer_states_linked = False
    zero._lazy_init_hp_params_optimizer_state()


def master_partitions(zero: Any) -> list[Tensor]:
    """Stage 3: the flat fp32 master weights that are the keys of the optimizer's state."""
    return list(zero.fp32_partitioned_groups_flat)
