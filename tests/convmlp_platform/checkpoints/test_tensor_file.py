"""Tensors come back as they were, whole or in runs from any number of files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from convmlp_platform.checkpoints.layout import Part, group_of, tensor_file_name
from convmlp_platform.checkpoints.snapshot import Snapshots
from convmlp_platform.checkpoints.tensor_file import TensorSlice, read_tensors
from convmlp_platform.errors import CheckpointError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def tensor_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def written(
    folder: Path,
    tensors: dict[str, Tensor],
    slices: dict[str, TensorSlice],
    part: Part = Part(),  # noqa: B008
) -> Path:
    ((name, chunks),) = Snapshots(part).take({"model": tensors}, {"model": slices}).items()
    (folder / name).write_bytes(b"".join(chunks()))
    return folder / name


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=8), st.tuples(shapes, st.sampled_from(DTYPES)), max_size=6))
def test_whole_tensors_come_back_and_other_tools_read_them(
    tmp_path: Path, kinds: dict[str, tuple[tuple[int, ...], torch.dtype]]
) -> None:
    kinds.pop("__metadata__", None)
    tensors = {name: tensor_of(*kind, seed=i) for i, (name, kind) in enumerate(kinds.items())}
    path = written(tmp_path, tensors, {})
    for found in (read_tensors([path]), load_file(path)):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=shapes, ranks=st.integers(1, 5), data=st.data())
def test_runs_of_any_ranks_join(
    tmp_path: Path, shape: tuple[int, ...], ranks: int, data: st.DataObject
) -> None:
    """Cut anywhere: evenly, as FSDP2 does, or with ranks that hold nothing."""
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    cuts = sorted(data.draw(st.lists(st.integers(0, tensor.numel()), min_size=ranks - 1, max_size=ranks - 1)))
    files = []
    for rank, (start, stop) in enumerate(zip([0, *cuts], [*cuts, tensor.numel()], strict=True)):
        run = {"w": tensor.flatten()[start:stop]} | ({"whole": torch.ones(2)} if rank == 0 else {})
        files.append(written(tmp_path, run, {"w": TensorSlice(shape, start)}, Part(rank, ranks)))
    if tensor.numel():
        found = read_tensors(files)
        assert torch.equal(found["w"], tensor)
        assert found.keys() == {"w", "whole"}


@pytest.mark.parametrize(
    "second", [TensorSlice((4,), 3), TensorSlice((4,), 1), TensorSlice((5,), 2), TensorSlice((2, 2), 2)]
)
def test_gaps_overlaps_and_other_shapes_are_refused(tmp_path: Path, second: TensorSlice) -> None:
    files = [
        written(tmp_path, {"w": torch.zeros(2)}, {"w": TensorSlice((4,), 0)}, Part(0, 2)),
        written(tmp_path, {"w": torch.zeros(2)}, {"w": second}, Part(1, 2)),
    ]
    with pytest.raises(CheckpointError, match="w isn't whole"):
        read_tensors(files)


def test_a_missing_file_of_a_rank_is_noticed(tmp_path: Path) -> None:
    file = written(tmp_path, {"w": torch.zeros(2)}, {"w": TensorSlice((4,), 0)}, Part(0, 2))
    with pytest.raises(CheckpointError, match=r"w isn't whole: .* \[\(0, 2\)\]"):
        read_tensors([file])


def test_layouts_other_than_row_major_are_stored_row_major(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    cut = torch.randn(6, 4).t()
    found = read_tensors([written(tmp_path, {"a": tensor, "b": cut}, {})])
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["b"], cut)


def test_a_snapshot_keeps_the_instant_and_its_memory(tmp_path: Path) -> None:
    snapshots, tensor = Snapshots(Part()), torch.zeros(1000)
    files = snapshots.take({"model": {"w": tensor}}, {})
    memory = snapshots._memory["model"].data_ptr()
    tensor += 1
    assert b"".join(files["model.safetensors"]()).count(b"\0") >= 4000
    snapshots.take({"model": {"w": tensor}}, {})
    assert snapshots._memory["model"].data_ptr() == memory


def test_a_snapshot_may_end_later_for_what_stands_still() -> None:
    """What changes at once is copied at once, the rest before `settle` returns."""
    snapshots = Snapshots(Part())
    tensors = {"weight": torch.zeros(500_000), "running_mean": torch.zeros(7)}
    for value in range(1, 6):
        for tensor in tensors.values():
            tensor.fill_(value)
        files = snapshots.take({"model": tensors}, {}, changing={"running_mean"})
        tensors["running_mean"] += 100
        snapshots.settle()
        tensors["weight"] += 100
        content = b"".join(files["model.safetensors"]())
        assert content.endswith(torch.full((500_007,), float(value)).numpy().tobytes())


def test_files_are_named_by_group_and_part() -> None:
    assert tensor_file_name("model", Part()) == "model.safetensors"
    assert tensor_file_name("ema", Part(1, 4)) == "ema-00002-of-00004.safetensors"
    assert [group_of(name) for name in ("model.safetensors", "ema-00002-of-00004.safetensors", "state.json")] == [
        "model", "ema", None,
    ]  # fmt: skip
