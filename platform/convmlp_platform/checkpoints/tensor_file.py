"""Tensors in a safetensors file: whole ones, or runs of their elements.

A sharded strategy leaves each rank with a run of a tensor's elements in row-major order: FSDP2's rows are one, and
so are ZeRO's flat partitions. Such a file's metadata has, under `slices`, the full shape and the first element of
each; reading joins the runs of all files by name, whatever number of ranks wrote them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from convmlp_platform.errors import CheckpointError
from data_prep.storage.json_files import Count, parse_json

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorSlice:
    """Elements `start`, `start + 1`, ... of a tensor of `shape`, in row-major order."""

    shape: tuple[Count, ...]
    start: Count


@dataclass(frozen=True)
class FilePlan:
    """A file before its tensors are known: what comes first, and where each tensor's bytes go after that."""

    header: bytes
    places: dict[str, tuple[int, int]]
    """First and last + 1 byte of each tensor, counted from the header's end."""
    data_bytes: int


def plan_file(tensors: Mapping[str, Tensor], slices: Mapping[str, TensorSlice]) -> FilePlan:
    """Lay out a file of these tensors. Widest types first, so that every tensor is aligned.

    (safetensors' own writer takes the tensors themselves, and writes without telling a hash; here the bytes come
    later, from a snapshot, and pass through SHA-256 on their way.)
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {}
    places: dict[str, tuple[int, int]] = {}
    position = 0
    for name in names:
        tensor = tensors[name]
        places[name] = (position, position + tensor.numel() * tensor.element_size())
        position = places[name][1]
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": places[name],
        }
    cut = {
        name: {"shape": slices[name].shape, "start": slices[name].start} for name in names if name in slices
    }
    metadata = {"format": "pt"} | ({"slices": json.dumps(cut)} if cut else {})
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return FilePlan(len(text).to_bytes(8, "little") + text, places, position)


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """The full tensors of one group from all its files. Whole ones are mapped into memory, not read.

    Raises:
        CheckpointError: a file can't be read, or the files don't hold all of a tensor, or some of it twice.
    """
    whole: dict[str, Tensor] = {}
    runs: dict[str, list[tuple[TensorSlice, Tensor]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as content:
                cut = parse_json(
                    (content.metadata() or {}).get("slices", "{}").encode(), dict[str, TensorSlice]
                )
                for name in content.keys():  # noqa: SIM118 (it is no mapping)
                    if name in cut:
                        runs.setdefault(name, []).append((cut[name], content.get_tensor(name)))
                    elif name in whole:
                        raise CheckpointError(f"{file}: {name} is in another file of the checkpoint as well")
                    else:
                        whole[name] = content.get_tensor(name)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"{file} can't be read: {error}") from error
    where = files[0].parent if files else Path()
    return whole | {name: _joined(name, pieces, where) for name, pieces in runs.items()}


def _joined(name: str, runs: list[tuple[TensorSlice, Tensor]], where: Path) -> Tensor:
    """One tensor from its runs, which must follow each other without gap or overlap."""
    runs = sorted((run for run in runs if run[1].numel()), key=lambda run: run[0].start)
    shapes = {piece.shape for piece, _ in runs}
    ends = [0]
    for piece, tensor in runs:
        if piece.start != ends[-1]:
            break
        ends.append(piece.start + tensor.numel())
    if len(shapes) != 1 or len(ends) <= len(runs) or ends[-1] != math.prod(next(iter(shapes))):
        found = [(piece.start, piece.start + tensor.numel()) for piece, tensor in runs]
        raise CheckpointError(
            f"checkpoint {where}: {name} isn't whole: of shape {sorted(shapes)} it has elements {found}"
        )
    flat = torch.cat([tensor.flatten() for _, tensor in runs]) if len(runs) > 1 else runs[0][1].flatten()
    return flat.view(next(iter(shapes)))
