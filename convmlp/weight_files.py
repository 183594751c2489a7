"""Read a file of released weights as a state_dict, by what is in it: never by its name, never executing code."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

# Where training scripts put the weights: CycleMLP's and DeiT's, timm's and OpenMMLab's.
_WRAPPERS = ("model", "state_dict")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors`, PyTorch (`.pth`) or Google `.npz` file, by PyTorch names.

    Weights nested under "model" or "state_dict" are found, a "module." of DistributedDataParallel before every
    name is taken off, and the arrays of a Mixer `.npz` get timm's names and PyTorch's layout.

    Raises:
        ValueError: the file is missing, unreadable, or holds something else.
    """
    kind = _sniff(path)
    try:
        if kind == "safetensors":
            return load_file(path)
        if kind == "npz":
            return mixer_state_dict(_read_npz(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle fails in torch's reader in any way: IndexError, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read weights from {path}: {reason}") from error
    return _without_prefix(_unwrap(state, path), "module.")


def is_flax_file(path: Path) -> bool:
    """Whether `read_state_dict` converts the file from Flax's names and layout."""
    return _sniff(path) == "npz"


def _sniff(path: Path) -> str:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            return "npz" if names and all(name.endswith(".npy") for name in names) else "torch"
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"cannot read weights from {path}: {error.strerror or error}") from error
    # safetensors: the header's length in 8 bytes, then the header, which is JSON.
    return "safetensors" if start[8:] == b"{" else "torch"


def _unwrap(state: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(state, Mapping):
        for key in _WRAPPERS:
            if isinstance(state.get(key), Mapping):
                state = state[key]
                break
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        found = sorted(map(str, state))[:8] if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"{path} is neither a state_dict of tensors nor holds one as {' or '.join(map(repr, _WRAPPERS))} "
            f"(found {found}): save the model's state_dict alone, e.g. as .safetensors"
        )
    return dict(state)


def _without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if state and all(key.startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


_MIXER_NAMES = (
    (r"^MixerBlock_(\d+)/", r"blocks.\1."),
    (r"LayerNorm_0/", "norm1."),
    (r"LayerNorm_1/", "norm2."),
    (r"token_mixing/", "mlp_tokens."),
    (r"channel_mixing/", "mlp_channels."),
    (r"Dense_0/", "fc1."),
    (r"Dense_1/", "fc2."),
    (r"^pre_head_layer_norm/", "norm."),
    (r"^stem/", "stem.proj."),
    (r"^head/", "head."),
    (r"(kernel|scale)$", "weight"),
)


def mixer_state_dict(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """Arrays of Google's Mixer release by timm's names, kernels in PyTorch's layout.

    Flax keeps convolutions as [height, width, in, out] and dense kernels as [in, out].

    Raises:
        ValueError: these aren't a Mixer's arrays.
    """
    if "stem/kernel" not in arrays or "MixerBlock_0/token_mixing/Dense_0/kernel" not in arrays:
        raise ValueError(
            f"this .npz holds no MLP-Mixer (found {sorted(arrays)[:4]}); only Google's Mixer files are known"
        )
    state = {}
    for key, array in arrays.items():
        name = key
        for pattern, replacement in _MIXER_NAMES:
            name = re.sub(pattern, replacement, name)
        if key.endswith("kernel"):
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return state
