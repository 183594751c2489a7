"""DeepSpeed's undocumented names that `engine/deepspeed_internals` uses: an upgrade without them fails by name."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import pytest
from ranks import run_ranks
from test_engines_agree import build, micro_batch

from convmlp_platform.engine.engine import Engine

ZERO: dict[str, tuple[tuple[int, ...], str]] = {
    "torch_autocast_gradscaler": ((1, 2, 3), "fp16 under our own loss scale"),
    "override_loss_scale": ((1, 2, 3), "fp16 under our own loss scale"),
    "averaged_gradients": ((1, 2, 3), "the gradient's norm before an update"),
    "norm_for_param_grads": ((1, 2, 3), "the gradient's norm with an offloaded optimizer"),
    "_pre_step": ((3,), "a refused step"),
    "_partition_all_parameters": ((3,), "a refused step"),
    "_overflow_clean_up": ((3,), "a refused step"),
    "loss_scale": ((3,), "a refused step"),
    "micro_step_id": ((1, 2), "a refused step"),
    "zero_grad": ((1, 2), "a refused step"),
    "_release_preflattened_grad_buffers": ((1, 2), "a refused step"),
    "_offload_accumulated_param_ids": ((1, 2), "a refused step with an offloaded optimizer"),
    "reset_cpu_buffers": ((1, 2), "a refused step with an offloaded optimizer"),
    "all_grad_tensors": ((1, 2), "a refused step"),
    "_hp_optimizer_states_linked": ((1, 2), "a checkpoint's optimizer state"),
    "_lazy_init_hp_params_optimizer_state": ((1, 2), "a checkpoint's optimizer state"),
    "fp32_partitioned_groups_flat": ((3,), "loading a checkpoint's optimizer state"),
}
"""Attribute of what `deepspeed.initialize` returns as the optimizer → the ZeRO stages that need it, and for what."""
PARAMETER: dict[str, tuple[tuple[int, ...], str]] = {
    "ds_tensor": ((3,), "this rank's part of the weights"),
    "ds_shape": ((3,), "a checkpoint's tensors"),
    "ds_numel": ((3,), "a checkpoint's tensors"),
    "_hp_mapping": ((1, 2), "a checkpoint's optimizer state"),
}
WRAPPER = ("was_step_applied", "zero_offload_optimizer", "empty_partition_cache", "zero_optimization_stage")
"""Methods of `DeepSpeedEngine` that engine/deepspeed.py calls; all are public."""


def problems(stage: int) -> list[str]:
    """What is missing, or does another thing, in an engine that has made an update and begun the next step."""
    engine: Any = build("deepspeed", stage, "fp32")
    found = [
        f"DeepSpeed (stage {stage}): DeepSpeedEngine has no {name}; engine/deepspeed.py depends on it"
        for name in WRAPPER
        if not hasattr(engine.wrapped, name)
    ]
    for names, owner, what in (
        (ZERO, engine._zero, "the ZeRO optimizer"),
        (PARAMETER, next(iter(engine.model.parameters())), "a parameter"),
    ):
        found += [
            f"DeepSpeed (stage {stage}): {what} has no {name}; {purpose} (engine/deepspeed_internals.py) depends on it"
            for name, (stages, purpose) in names.items()
            if stage in stages and not hasattr(owner, name) and not of_offloading(owner, name)
        ]
    return found + ([] if found else misbehaviour(engine, stage))


def of_offloading(owner: Any, name: str) -> bool:
    """Whether it is one of the attributes that are only there with an offloaded optimizer, which takes a compiler."""
    return "offload" in ZERO.get(name, ((), ""))[1] and f"self.{name} = " in inspect.getsource(type(owner))


def misbehaviour(engine: Engine, stage: int) -> list[str]:
    from convmlp_platform.engine import deepspeed_internals as internals

    found: list[str] = []

    def expect(holds: bool, name: str, wanted: str) -> None:
        if not holds:
            found.append(
                f"DeepSpeed (stage {stage}): {name}: expected {wanted} (engine/deepspeed_internals.py)"
            )

    zero: Any = engine._zero  # type: ignore[attr-defined]
    batches = [micro_batch(0, number, False) for number in range(4)]
    engine.compute(batches, step=0)
    parts = internals.reduced_gradients(zero)
    count = sum(parameter.numel() for parameter in engine.local_tensors().values() if parameter.requires_grad)
    expect(
        sum(part.numel() for part in parts) >= count,
        "averaged_gradients",
        "one of each parameter of one rank",
    )
    expect(any(bool(part.any()) for part in parts), "averaged_gradients", "gradients after backward")
    engine.refuse()
    if stage < 3:
        left = [group for group in zero.averaged_gradients.values() if group is not None]
        expect(not left, "averaged_gradients", "nothing after a refused step")
    engine.compute(batches, step=1)
    engine.update(0.01, 1.0)
    weight = dict(engine.model.named_parameters())["8.weight"]
    if stage == 3:
        shape, elements = internals.whole_shape(weight)
        expect(shape == (900, 112) and elements == 100_800, "ds_shape, ds_numel", "the whole parameter's")
        expect(internals.partition(weight).numel() == 100_800, "ds_tensor", "all elements on one rank")
        state = zero.optimizer.state
        expect(all(flat in state for flat in internals.master_partitions(zero)), "fp32_partitioned_groups_flat",
               "the keys of the optimizer's state")  # fmt: skip
    else:
        internals.link_optimizer_state(zero)
        fragment = internals.slot_fragment(weight, "exp_avg")
        whole = fragment is not None and (fragment[0].numel(), fragment[1]) == (100_800, 0)
        names = "_hp_mapping.get_optim_state_fragment, .lp_fragment_address.start"
        expect(whole, names, "all elements, from the first")
        expect(fragment is not None and bool(fragment[0].any()), "_hp_mapping", "what the update has left")
    return found


def all_problems() -> list[str]:
    return [problem for stage in (1, 2, 3) for problem in problems(stage)]


@pytest.mark.slow
def test_zero_has_what_a_step_and_a_checkpoint_need() -> None:
    (found,) = run_ranks(all_problems, 1)
    assert found == [], "\n".join(found)


@pytest.mark.parametrize("name", ["build_shm_op"])
def test_the_compiled_kernel_is_left_out(name: str) -> None:
    import convmlp_platform.engine.deepspeed  # noqa: F401

    module = sys.modules.get("deepspeed.comm.torch")
    needed_by = "a start without 28 s of compiling (engine/deepspeed_internals.py) depends on it"
    assert hasattr(module, name), f"DeepSpeed: no deepspeed.comm.torch.{name}; {needed_by}"
    assert getattr(module, name)() is None, f"DeepSpeed: deepspeed.comm.torch.{name} isn't ours; {needed_by}"


def test_the_first_micro_step_has_its_number() -> None:
    import deepspeed.runtime.zero.stage_1_and_2 as module

    told = (
        "DeepSpeed: deepspeed.runtime.zero.stage_1_and_2.INITIAL_MICRO_STEP_ID; a refused step depends on it"
    )
    assert getattr(module, "INITIAL_MICRO_STEP_ID", None) == -1, told
