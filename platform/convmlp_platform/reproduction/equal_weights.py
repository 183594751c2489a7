"""Whether two files of weights are the same: by the files' hash, by every bit of every tensor, or by how much not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from convmlp_platform.errors import TrackingError
from data_prep.storage.files import sha256_file


@dataclass(frozen=True)
class WeightsComparison:
    """Two files of weights.

    Args:
        sha256, other_sha256: of the files.
        equal: whether all tensors have the same names, types, shapes and bits.
        differing: names of the tensors that haven't.
        furthest: the largest difference of two numbers; None where shapes or names differ, or nothing does.
    """

    sha256: str
    other_sha256: str
    equal: bool
    differing: list[str]
    furthest: float | None


def compare_weights(file: Path, other: Path) -> WeightsComparison:
    """Compare two safetensors files.

    Raises:
        TrackingError: one can't be read.
    """
    try:
        first, second = sha256_file(file), sha256_file(other)
        if first == second:
            return WeightsComparison(first, second, True, [], None)
        ours, theirs = load_file(file), load_file(other)
    except (OSError, SafetensorError) as error:
        raise TrackingError(f"{file} and {other} can't be compared: {error}") from None
    strange = sorted(ours.keys() ^ theirs.keys())
    differing = [name for name in sorted(ours.keys() & theirs.keys()) if not _same(ours[name], theirs[name])]
    if not strange and not differing:  # the same tensors in files of another release of safetensors
        return WeightsComparison(first, second, True, [], None)
    pairs = [(ours[name], theirs[name]) for name in differing]
    comparable = not strange and all(one.shape == two.shape for one, two in pairs)
    furthest = (
        max(float((one.double() - two.double()).abs().max()) for one, two in pairs) if comparable else None
    )
    return WeightsComparison(first, second, False, strange + differing, furthest)


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(
        one.contiguous().view(-1).view(torch.uint8), two.contiguous().view(-1).view(torch.uint8)
    )
