"""Load released weights into a model, or refuse: never load half a file silently."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass(frozen=True)
class WeightsReport:
    """What `load_pretrained` did, by state_dict key."""

    loaded: tuple[str, ...]
    """Copied from the file."""
    replaced: tuple[str, ...]
    """Head entries of another number of classes: the model keeps its fresh ones."""
    dropped: tuple[str, ...]
    """Head entries of the file that a headless model has no place for."""


def load_pretrained(model: nn.Module, path: str | Path) -> WeightsReport:
    """Copy a bare state_dict into `model`, keeping the model's own head where the shapes differ.

    Args:
        model: a ConvMLP or timm classifier (with `get_classifier`), headless or not.
        path: `.safetensors`, or a `.pth`/`.pt` file as the ConvMLP authors released them: a state_dict with
            no prefix. It is read without executing code (`weights_only=True`).

    Raises:
        ValueError: the file is missing or unreadable, or apart from the head any entry is missing,
            unexpected or of another shape; the message lists them. The model is then unchanged.
    """
    path = Path(path)
    source = _read_state_dict(path)
    target = model.state_dict()
    head = _head_keys(model, source)

    misshapen = {key for key in source.keys() & target.keys() if source[key].shape != target[key].shape}
    replaced = misshapen & head
    if replaced:  # weight and bias belong together, even if one of them happened to fit
        replaced = head & target.keys()
    dropped = head - target.keys()
    problems = [
        *(f"missing: {key} {tuple(target[key].shape)}" for key in sorted(target.keys() - source.keys())),
        *(
            f"unexpected: {key} {tuple(source[key].shape)}"
            for key in sorted(source.keys() - target.keys() - dropped)
        ),
        *(
            f"shape: {key} is {tuple(source[key].shape)} in the file, {tuple(target[key].shape)} in the model"
            for key in sorted(misshapen - replaced)
        ),
    ]
    loaded = {key: source[key] for key in target if key in source and key not in replaced}
    if problems or not loaded:
        raise ValueError(_mismatch_message(path, model, problems))
    model.load_state_dict(loaded, strict=False)
    return WeightsReport(tuple(loaded), tuple(sorted(replaced)), tuple(sorted(dropped)))


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read weights from {path}: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = sorted(map(str, state))[:8] if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{path} is not a bare state_dict of tensors (found {found}): "
            "save the model's state_dict alone, e.g. as .safetensors"
        )
    return state


def _head_keys(model: nn.Module, source: dict[str, Tensor]) -> set[str]:
    """Keys of the source that belong to the classifier of `model`, also where the model has none now."""
    classifier = getattr(model, "get_classifier", lambda: None)()
    name = next((name for name, module in model.named_modules() if module is classifier and name), None)
    if name is None:
        name = getattr(model, "pretrained_cfg", {}).get("classifier", "head")
    names = name if isinstance(name, tuple | list) else (name,)
    return {key for key in source if any(key in (f"{n}.weight", f"{n}.bias") for n in names)}


def _mismatch_message(path: Path, model: nn.Module, problems: list[str]) -> str:
    shown = problems[:20]
    more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
    lines = "\n  ".join([*shown, *more] or ["the file holds no entry that fits"])
    return f"{path} does not fit {type(model).__name__}:\n  {lines}"
