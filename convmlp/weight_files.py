"""Read a file of weights as a state_dict, by what is in it: never by its name, never executing code."""

import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

Choice = Literal["auto", "ema", "raw"]
"""Of a file with two sets of weights: the moving average (ema), those that the optimizer moves (raw); auto: the average
where there is one, as it is the model that its trainer evaluated."""

# Where training scripts put the weights: CycleMLP's, DeiT's and torchvision's, timm's and OpenMMLab's.
_RAW = ("model", "state_dict")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")


@dataclass(frozen=True)
class FileWeights:
    """The weights in a file, by PyTorch names, and what the file says of them.

    Args:
        tensors: as they are named in the file.
        taken: the entry of the file that they were; "" where the file is the state_dict.
        left: the entry with the other set of weights; None: there is no other.
        is_average: whether `taken` is known to be a moving average.
        classes: names, in the order of the head's rows; None: the file doesn't say.
        is_flax: whether they were converted from Flax's names and layout.
    """

    tensors: dict[str, Tensor]
    taken: str = ""
    left: str | None = None
    is_average: bool = False
    classes: tuple[str, ...] | None = None
    is_flax: bool = False

    @property
    def choice(self) -> str | None:
        """The set that was taken of two, for people; None where the file holds one."""
        if self.left is None:
            return None
        if self.is_average:
            return (
                f"of its two sets of weights the moving average, {self.taken!r}, is taken, not {self.left!r}"
            )
        return f"of its two sets of weights {self.taken!r} is taken, not the moving average, {self.left!r}"


def read_weights(path: Path, choice: Choice = "auto") -> FileWeights:
    """The weights in a `.safetensors`, PyTorch (`.pth`) or Google `.npz` file.

    Those nested as "model" or "state_dict" and their averages ("state_dict_ema", "model_ema") are found, and the arrays
    of a Mixer `.npz` get timm's names and PyTorch's layout. Whatever else a trainer keeps beside them, such as its
    `argparse.Namespace`, is passed over: no class of it is imported and nothing of it is called.

    Args:
        path: the file.
        choice: which set of weights, where it holds several.

    Raises:
        ValueError: the file is missing, unreadable, holds something else, or lacks the chosen set.
    """
    kind = _sniff(path)
    try:
        if kind == "safetensors":
            return _only(FileWeights(load_file(path)), choice, path)
        if kind == "npz":
            return _only(FileWeights(mixer_state_dict(_read_npz(path)), is_flax=True), choice, path)
    except Exception as error:
        raise ValueError(f"cannot read weights from {path}: {_first_line(error)}") from error
    return _chosen(_unpickled(path), choice, path)


def _only(weights: FileWeights, choice: Choice, path: Path) -> FileWeights:
    if choice == "ema":
        raise ValueError("it holds one set of weights, and doesn't say whether that is a moving average")
    return weights


def _sniff(path: Path) -> str:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            return "npz" if names and all(name.endswith(".npy") for name in names) else "torch"
        with path.open("rb") as file:
            start = file.read(9)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"cannot read weights from {path}: {_first_line(error)}") from error
    # safetensors: the header's length in 8 bytes, then the header, which is JSON.
    return "safetensors" if start[8:] == b"{" else "torch"


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class _Passed:
    """Stands for an object that isn't needed: takes all that a pickle does to it, and keeps nothing."""

    def __new__(cls, *_args: Any) -> "_Passed":
        return super().__new__(cls)

    def __init__(self, *_args: Any) -> None: ...

    def __setstate__(self, _state: Any) -> None: ...


class _PassedDict(_Passed):
    """Stands for a class of dictionaries: a plain one is what torch's reader puts items into."""

    def __new__(cls, *_args: Any) -> "OrderedDict[Any, Any]":  # type: ignore[misc]
        return OrderedDict()


class _PassedList(_Passed):
    def __new__(cls, *_args: Any) -> list[Any]:  # type: ignore[misc]
        return []


# What trainers keep beside the weights: their arguments, and values of NumPy. Never the real classes: a pickle may call
# them, and of `numpy.dtype` even setting its state harms the process.
_PASSED: dict[type[_Passed], tuple[str, ...]] = {
    _Passed: (
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "frozenset")),
        "builtins.range",
        "builtins.slice",
        *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "typing.Any",
        *(f"numpy.{name}" for name in ("dtype", "ndarray")),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "SCMode", "UnionNode")),
        *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer")),
        *(f"omegaconf.nodes.{name}Node" for name in ("Path", "String")),
        "ml_collections.config_dict.config_dict.ConfigDict",
        "ml_collections.config_dict.config_dict.FrozenConfigDict",
        "mmengine.logging.history_buffer.HistoryBuffer",
    ),
    _PassedDict: (
        "collections.defaultdict",
        "addict.addict.Dict",
        "easydict.EasyDict",
        "yacs.config.CfgNode",
        "fvcore.common.config.CfgNode",
        "mmengine.config.config.ConfigDict",
        "mmcv.utils.config.ConfigDict",
        "timm.utils.misc.AttrDict",
    ),
    _PassedList: ("collections.deque",),
}  # fmt: skip

_EXPORT = "where it was trained, save the weights alone: torch.save(model.state_dict(), 'weights.pth'), or safetensors"


def _unpickled(path: Path) -> Any:
    """Returns the content that `torch.save` has written; objects that no one needs are passed over."""
    passed = [(stand_in, name) for stand_in, names in _PASSED.items() for name in names]
    try:
        with torch.serialization.safe_globals(passed), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore", UserWarning)  # of a pickle protocol: it is read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle fails in torch's reader in any way: IndexError, ...
        raise ValueError(f"cannot read weights from {path}: {_refusal(error)}") from error


def _refusal(error: Exception) -> str:
    """Torch's page of advice as one line: what is in the way, and how to get plain weights."""
    text = str(error)
    if found := re.search(r"GLOBAL (\S+) (?:was not|whose module)", text):
        return f"it holds an object of {found[1]}, which can't be read without running code of its author; {_EXPORT}"
    if "TorchScript" in text:
        return f"it is a TorchScript program, not weights; {_EXPORT}"
    if found := re.search(r"Unsupported operand (\d+)", text):
        return f"it was pickled with another protocol than torch.save's own (operation {found[1]}); {_EXPORT}"
    if "Weights only load failed" in text:
        detail = re.findall(r"WeightsUnpickler error: *\n*(.+)|\n\n\n?(.+)\n\nCheck the doc", text)
        reason = next((part for pair in detail for part in pair if part), "")
        return f"it holds more than weights{f' ({reason.strip()})' if reason else ''}; {_EXPORT}"
    return _first_line(error)


def _chosen(state: Any, choice: Choice, path: Path) -> FileWeights:
    """The set of weights that is asked for, out of what a `.pth` holds."""
    if not isinstance(state, Mapping):
        raise _no_weights(path, type(state).__name__)
    raw = next((name for name in _RAW if _holds(state, name)), None)
    average = next((name for name in _AVERAGES if _holds(state, name)), None)
    if (
        average == "ema_state_dict" and "message_hub" in state
    ):  # OpenMMLab's: each is saved in the other's place
        raw, average = average, raw
    if choice == "ema" and average is None:
        names = " or ".join(map(repr, _AVERAGES))
        raise ValueError(f"{path} holds no moving average (it would be {names}): leave the choice out")
    if choice == "raw" and raw is None and average is not None:
        raise ValueError(f"{path} holds a moving average alone ({average!r}): leave the choice out")
    taken, left = (average, raw) if average is not None and choice != "raw" else (raw, average)
    tensors = state if taken is None else state[taken]
    if not all(isinstance(value, Tensor) for value in tensors.values()):
        raise _no_weights(path, sorted(map(str, tensors))[:8])
    named = {str(name): value for name, value in tensors.items()}
    is_average = taken is not None and taken == average
    return FileWeights(named, taken or "", left, is_average, _classes(state))


def _holds(state: Mapping[Any, Any], name: str) -> bool:
    return isinstance(state.get(name), Mapping) and bool(state[name])


def _classes(state: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Of OpenMMLab's checkpoints, which keep them in "meta"."""
    meta = state.get("meta")
    facts = meta.get("dataset_meta", meta) if isinstance(meta, Mapping) else None
    names = facts.get("classes", facts.get("CLASSES")) if isinstance(facts, Mapping) else None
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _no_weights(path: Path, found: object) -> ValueError:
    return ValueError(
        f"{path} is neither a state_dict of tensors nor holds one as {' or '.join(map(repr, _RAW + _AVERAGES[:2]))} "
        f"(found {found}): save the model's state_dict alone, e.g. as .safetensors"
    )


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
