"""Load released weights into a model, or refuse: never load half a file silently."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from timm.models._features import FeatureDictNet, FeatureGetterNet, FeatureHookNet
from torch import Tensor, nn

from convmlp.models.cycle_fc import CycleFC, read_shifts
from convmlp.models.mixer import Mixer
from convmlp.weight_files import is_flax_file, read_state_dict

Weights = str | Path | Mapping[str, Tensor]
"""A file of weights, or a state_dict."""


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
    backbone_only: bool = False
    """Whether a detector or segmenter got its backbone's weights alone: keys are then the backbone's."""


def load_pretrained(model: nn.Module, weights: Weights, *, name: str | None = None) -> WeightsReport:
    """Copy released weights into `model`, keeping the model's own head where the shapes differ.

    Args:
        model: one of this package's networks or timm's, with a head or without, or made with
            `features_only=True`, which takes the parts it has and may be given a whole detector; or a detector or
            segmenter of `convmlp.tasks`, which takes a whole one of its kind, else what its backbone can use.
        weights: `.safetensors` or `.pth` as ConvMLP's and CycleMLP's authors, timm or OpenMMLab save them, or
            Google's `.npz` of a Mixer; found out from the content. No code in it is executed. Or a state_dict.
        name: what messages call the weights; default: the file's path.

    Raises:
        ValueError: the file is missing or unreadable, or apart from the head any entry is missing,
            unexpected or of another shape; the message lists them. The model is then unchanged.
    """
    network, source, report = _plan(model, weights, name or _name_of(weights))
    network.load_state_dict({key: source[key] for key in report.loaded}, strict=False)
    return report


def match_pretrained(model: nn.Module, weights: Weights, *, name: str | None = None) -> WeightsReport:
    """What `load_pretrained` would do, with its errors; nothing is copied, so the model may be on "meta"."""
    return _plan(model, weights, name or _name_of(weights))[2]


def _name_of(weights: Weights) -> str:
    return "the state_dict" if isinstance(weights, Mapping) else str(weights)


def _plan(
    model: nn.Module, weights: Weights, name: str
) -> tuple[nn.Module, dict[str, Tensor], WeightsReport]:
    """The module to fill, the weights by its names, and which of them it takes."""
    source = dict(weights) if isinstance(weights, Mapping) else read_state_dict(Path(weights))
    body = getattr(getattr(model, "backbone", None), "body", None)
    backbone_only = body is not None and not _is_alike(model, source)
    target: nn.Module = body if body is not None and backbone_only else model
    is_backbone = isinstance(target, FeatureGetterNet | FeatureDictNet | FeatureHookNet)
    network: nn.Module = target.model if isinstance(target, FeatureGetterNet) else target
    if is_backbone:
        source = _backbone_part(source)
        if network is target:
            source = _renamed(source, network)
    report, problems = _match(network, source, is_backbone)
    if problems or not report.loaded:
        raise ValueError(_mismatch_message(name, network, problems))
    _check_offsets(network, source, name)
    if not isinstance(weights, Mapping):
        _note_gelu(network, Path(weights))
    return network, source, replace(report, backbone_only=backbone_only)


def _is_alike(model: nn.Module, source: Mapping[str, Tensor]) -> bool:
    """Whether the source is a whole detector or segmenter as `model` is one."""
    has_backbone = any(key.startswith("backbone.") for key in source)
    return has_backbone and any(
        key in source for key in model.state_dict() if not key.startswith("backbone.")
    )


def _backbone_part(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a detector's or segmenter's weights, OpenMMLab's or ours, those of its backbone; others as they are."""
    for prefix in ("backbone.body.model.", "backbone.body.", "backbone."):
        if part := {k.removeprefix(prefix): v for k, v in source.items() if k.startswith(prefix)}:
            return part
    return source


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
    return WeightsReport(loaded, _sorted(replaced), _sorted(dropped), _sorted(fresh)), problems


def _sorted(keys: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(keys))


def _head_keys(model: nn.Module, source: dict[str, Tensor]) -> set[str]:
    """Keys of the source that belong to the classifier of `model`, also where the model has none now."""
    if own := getattr(model, "class_heads", ()):
        return {key for key in source if key.rpartition(".")[0] in own}
    classifier = getattr(model, "get_classifier", lambda: None)()
    name = next((name for name, module in model.named_modules() if module is classifier and name), None)
    if name is None:
        name = getattr(model, "pretrained_cfg", {}).get("classifier", "head")
    names = name if isinstance(name, tuple | list) else (name,)
    return {key for key in source if any(key in (f"{n}.weight", f"{n}.bias") for n in names)}


def _check_offsets(model: nn.Module, source: dict[str, Tensor], where: str) -> None:
    for name, module in model.named_modules():
        if isinstance(module, CycleFC):
            try:
                read_shifts(source[f"{name}.offset"])
            except ValueError as error:
                raise ValueError(f"{where}: {name}.offset: {error}") from None


def _note_gelu(model: nn.Module, path: Path) -> None:
    if isinstance(model, Mixer) and model.gelu == "exact" and is_flax_file(path):
        warnings.warn(
            f"{path} was trained with the tanh approximation of GELU and the model has the exact one: outputs "
            "differ slightly from Google's; make the model with gelu='tanh' for equal ones",
            stacklevel=4,
        )


def _mismatch_message(name: str, model: nn.Module, problems: list[str]) -> str:
    shown = problems[:20]
    more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
    lines = "\n  ".join([*shown, *more] or ["the file holds no entry that fits"])
    return f"{name} does not fit {type(model).__name__}:\n  {lines}\n{_advice(problems)}"


def _advice(problems: list[str]) -> str:
    """What to do about it."""
    if problems and all(".mlp_tokens." in line or "pos_embed" in line for line in problems):
        return "The file is for another image size: make the model with that img_size."
    if len(problems) == 1 and problems[0].startswith("shape:"):
        return "If it is the first layer, the file is for another in_chans."
    return "Make the model that the file was saved from: the same name and the same options."
