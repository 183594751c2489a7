"""torch's private names that `torch_internals` uses: where an upgrade takes one away, this fails by name."""

from __future__ import annotations

import importlib
import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from convmlp_platform import torch_internals as internals
from convmlp_platform.data.reading.loader import reader_died

NEEDED_BY = {
    "_foreach_norm": "the gradient's norm (engine/)",
    "_foreach_mul_": "clipping (engine/)",
    "_foreach_add_": "BatchNorm's statistics (engine/batch_norm.py)",
    "_foreach_copy_": "BatchNorm's statistics (engine/batch_norm.py)",
    "_foreach_lerp_": "the average of the weights (engine/ema.py)",
}


@pytest.mark.parametrize("name", NEEDED_BY)
def test_the_functions_of_many_tensors_are_there(name: str) -> None:
    assert hasattr(torch, name), f"torch: no torch.{name}; {NEEDED_BY[name]} depends on it"


def test_they_do_what_a_loop_does() -> None:
    def tensors(seed: int) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=draw) for shape in ((3,), (2, 5), (4, 1, 2))]

    def told(name: str) -> str:
        return f"torch: torch.{name} does another thing; {NEEDED_BY[name]} depends on it"

    found = internals.norms_of([*tensors(0), None, torch.empty(0)])
    for norm, tensor in zip(found, tensors(0), strict=True):
        torch.testing.assert_close(norm, tensor.norm(), msg=told("_foreach_norm"))
    for name, change, expected in (
        ("_foreach_mul_", lambda a, b: internals.scale_all([*a, None], 0.5), lambda a, b: a * 0.5),
        ("_foreach_add_", internals.add_all, lambda a, b: a + b),
        ("_foreach_copy_", internals.copy_all, lambda a, b: b),
        ("_foreach_lerp_", lambda a, b: internals.move_all(a, b, 0.25), lambda a, b: a.lerp(b, 0.25)),
    ):
        changed, other = tensors(0), tensors(1)
        change(changed, other)
        for one, before, beside in zip(changed, tensors(0), tensors(1), strict=True):
            assert torch.equal(one, expected(before, beside)), told(name)


class _Dying(Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, _: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0


def test_a_dead_reader_is_known_by_the_module_that_raises() -> None:
    named = "torch: of torch.utils.data._utils.signal_handling and torch.utils.data.dataloader"
    needed_by = "telling a dead reader from a bug (data/reading/loader.py: reader_died) depends on it"
    for module in internals.READER_DIED_IN:
        assert importlib.import_module(module), f"{named}, {module} is missing; {needed_by}"
    with pytest.raises(RuntimeError) as raised:
        next(iter(DataLoader(_Dying(), num_workers=1, multiprocessing_context="fork")))
    assert reader_died(raised.value), f"{named} raised neither, but {raised.value!r}; {needed_by}"


@pytest.mark.parametrize("name", ["_record_memory_history", "_dump_snapshot"])
def test_cuda_remembers_allocations(name: str) -> None:
    told = f"torch: no torch.cuda.memory.{name}; profiles' memory snapshots (training/profiling) depend on it"
    assert hasattr(torch.cuda.memory, name), told
