"""Load released weights into a model, or refuse: never load half a file silently."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet
from torch import Tensor, nn

from convmlp.models.cycle_fc import CycleFC, read_shifts
from convmlp.models.mixer import Mixer
from convmlp.weight_files import is_flax_file, read_state_dict


@dataclass(frozen=True)
class WeightsReport:
    """What `load_pretrained` did, by state_dict key."""

    loaded: tuple[str, ...]
    """Copied from the file."""
    replaced: tuple[str, ...]
    """Head entries of another number of classes: the model keeps its fresh ones."""
    dropped: tuple[str, ...]
    """Entries of the file that the model has no place for: the head, and whatever feature maps don't need."""
    fresh: tuple[str, ...] = ()
    """Norms of feature maps, which a classifier's file lacks: the model keeps its own."""


def load_pretrained(model: nn.Module, path: str | Path) -> WeightsReport:
    """Copy released weights into `model`, keeping the model's own head where the shapes differ.

    Args:
        model: one of this package's networks or timm's, with a head or without, or made with
            `features_only=True`, which takes the parts it has and may be given a whole detector.
        path: `.safetensors` or `.pth` as ConvMLP's and CycleMLP's authors, timm or OpenMMLab save them, or
            Google's `.npz` of a Mixer; found out from the content. No code in it is executed.

    Raises:
        ValueError: the file is missing or unreadable, or apart from the head any entry is missing,
            unexpected or of another shape; the message lists them. The model is then unchanged.
    """
    path = Path(path)
    source = read_state_dict(path)
    is_backbone = isinstance(model, FeatureGetterNet | FeatureDictNet | FeatureHookNet)
    network: nn.Module = model.model if isinstance(model, FeatureGetterNet) else model
    if is_backbone and any(key.startswith("backbone.") for key in source):  # a detector's or segmenter's file
        source = {k.removeprefix("backbone."): v for k, v in source.items() if k.startswith("backbone.")}
    if is_backbone and network is model:
        source = _renamed(source, network)
    report, problems = _match(network, source, is_backbone)
    if problems or not report.loaded:
        raise ValueError(_mismatch_message(path, network, problems))
    _check_offsets(network, source, path)
    _note_gelu(network, path)
    network.load_state_dict({key: source[key] for key in report.loaded}, strict=False)
    return report


def _renamed(source: dict[str, Tensor], extractor: nn.Module) -> dict[str, Tensor]:
    """The source by the names of a timm feature extractor, which may flatten "layers.0" to "layers_0"."""
    own = {key.replace(".", "_"): key for key in extractor.state_dict()}
    return {own.get(key.replace(".", "_"), key): value for key, value in source.items()}


def _match(model: nn.Module, source: dict[str, Tensor], is_backbone: bool) -> tuple[WeightsReport, list[str]]:
    """Which entries go where, and what stands in the way."""
    target = model.state_dict()
    head = _head_keys(model, source)
    optional = tuple(f"{prefix}." for prefix in getattr(model, "optional_weights", ()))
    fresh = {key for key in target.keys() - source.keys() if optional and key.startswith(optional)}
    misshapen = {key for key in source.keys() & target.keys() if source[key].shape != target[key].shape}
    replaced = misshapen & head
    if replaced:  # weight and bias belong together, even if one of them happened to fit
        replaced = head & target.keys()
    dropped = (source.keys() if is_backbone else head) - target.keys()
    missing = target.keys() - source.keys() - fresh
    unexpected = source.keys() - target.keys() - dropped
    problems = [
        *(f"missing: {key} {tuple(target[key].shape)}" for key in sorted(missing)),
        *(f"unexpected: {key} {tuple(source[key].shape)}" for key in sorted(unexpected)),
        *(
            f"shape: {key} is {tuple(source[key].shape)} in the file, {tuple(target[key].shape)} in the model"
            for key in sorted(misshapen - replaced)
        ),
    ]
    loaded = tuple(key for key in target if key in source and key not in replaced)
    return WeightsReport(loaded, *(tuple(sorted(keys)) for keys in (replaced, dropped, fresh))), problems


def _head_keys(model: nn.Module, source: dict[str, Tensor]) -> set[str]:
    """Keys of the source that belong to the classifier of `model`, also where the model has none now."""
    classifier = getattr(model, "get_classifier", lambda: None)()
    name = next((name for name, module in model.named_modules() if module is classifier and name), None)
    if name is None:
        name = getattr(model, "pretrained_cfg", {}).get("classifier", "head")
    names = name if isinstance(name, tuple | list) else (name,)
    return {key for key in source if any(key in (f"{n}.weight", f"{n}.bias") for n in names)}


def _check_offsets(model: nn.Module, source: dict[str, Tensor], path: Path) -> None:
    for name, module in model.named_modules():
        if isinstance(module, CycleFC):
            try:
                read_shifts(source[f"{name}.offset"])
            except ValueError as error:
                raise ValueError(f"{path}: {name}.offset: {error}") from None


def _note_gelu(model: nn.Module, path: Path) -> None:
    if isinstance(model, Mixer) and model.gelu == "exact" and is_flax_file(path):
        warnings.warn(
            f"{path} was trained with the tanh approximation of GELU and the model has the exact one: outputs "
            "differ slightly from Google's; make the model with gelu='tanh' for equal ones",
            stacklevel=3,
        )


def _mismatch_message(path: Path, model: nn.Module, problems: list[str]) -> str:
    shown = problems[:20]
    more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
    lines = "\n  ".join([*shown, *more] or ["the file holds no entry that fits"])
    return f"{path} does not fit {type(model).__name__}:\n  {lines}\n{_advice(problems)}"


def _advice(problems: list[str]) -> str:
    """What to do about it."""
    if problems and all(".mlp_tokens." in line or "pos_embed" in line for line in problems):
        return "The file is for another image size: make the model with that img_size."
    if len(problems) == 1 and problems[0].startswith("shape:"):
        return "If it is the first layer, the file is for another in_chans."
    return "Make the model that the file was saved from: the same name and the same options."
