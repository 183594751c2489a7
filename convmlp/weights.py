"""Load released weights into a model, or refuse: never load half a file silently."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from convmlp.models.cycle_mlp import CycleFC, read_shifts
from convmlp.timm_internals import is_feature_extractor, wrapped_network
from convmlp.weight_files import Choice, FileWeights, read_weights

Weights = str | Path | Mapping[str, Tensor] | FileWeights
"""A file of weights, what was read of one, or a state_dict."""

# Parts of names that wrappers add: FSDP, activation checkpointing and torch.compile also in the middle (a block that is
# compiled alone); DDP, Lightning, DeepSpeed and averages in front of all. What counts beside them isn't a weight.
_WRAPPERS_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS_IN_FRONT = ("module", "model", "_forward_module", "ema_model", "ema", "net", "network")
_COUNTERS = ("n_averaged", "steps")


@dataclass(frozen=True)
class WeightsReport:
    """The result of `load_pretrained`, by state_dict key."""

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
    head: tuple[str, ...] = ()
    """Of `loaded`, those of the classifier: whether its classes are the model's, only their number tells."""
    notes: tuple[str, ...] = ()
    """Sentences on what was chosen for the user, and on what differs."""


def load_pretrained(
    model: nn.Module,
    weights: Weights,
    *,
    name: str | None = None,
    choice: Choice = "auto",
    fresh_head: bool = False,
    note: Callable[[str], None] | None = None,
) -> WeightsReport:
    """Copy released weights into `model`, keeping the model's own head where the shapes differ.

    Prefixes that DDP, torch.compile, FSDP or an average put before names (`module._orig_mod.`) are taken off where the
    names then are the model's, and only there.

    Args:
        model: one of this package's networks or timm's, with a head or without, or made with
            `features_only=True`, which takes the parts it has and may be given a whole detector; or a detector or
            segmenter of `convmlp.tasks`, which takes a whole one of its kind, else what its backbone can use.
        weights: `.safetensors` or `.pth` as ConvMLP's and CycleMLP's authors, timm or OpenMMLab save them, or
            Google's `.npz` of a Mixer; found out from the content. No code in it is executed. Or a state_dict.
        name: what messages call the weights; default: the file's path.
        choice: of a file, which of its sets of weights (`convmlp.weight_files.Choice`).
        fresh_head: keep the model's own head even if the other one would fit: it is for other classes.
        note: takes each of the report's notes; default: `warnings.warn`.

    Raises:
        Misfit: apart from the head an entry is missing, unexpected or of another shape; the message lists them.
        ValueError: the file is missing or unreadable. The model is unchanged, here as there.
    """
    network, source, report = _plan(model, _read(weights, choice), name or _name_of(weights), fresh_head)
    network.load_state_dict({key: source[key] for key in report.loaded}, strict=False)
    for line in report.notes:
        (note or _warn)(line)
    return report


def match_pretrained(
    model: nn.Module,
    weights: Weights,
    *,
    name: str | None = None,
    choice: Choice = "auto",
    fresh_head: bool = False,
) -> WeightsReport:
    """Returns the report that `load_pretrained` would give, and raises its errors.

    Nothing is copied, so the model may be on "meta".
    """
    return _plan(model, _read(weights, choice), name or _name_of(weights), fresh_head)[2]


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=3)


def _name_of(weights: Weights) -> str:
    return str(weights) if isinstance(weights, str | Path) else "the state_dict"


def _read(weights: Weights, choice: Choice) -> FileWeights:
    if isinstance(weights, FileWeights):
        return weights
    return FileWeights(dict(weights)) if isinstance(weights, Mapping) else read_weights(Path(weights), choice)


def _plan(
    model: nn.Module, weights: FileWeights, name: str, fresh_head: bool
) -> tuple[nn.Module, dict[str, Tensor], WeightsReport]:
    """The module to fill, the weights by its names, and which of them it takes.

    Of the ways to take wrappers' prefixes off, none first, the first that fits; where none does, the one that fits
    most, so that the message is about what is wrong.
    """
    network, source, report, problems = min(
        (_plan_of_names(model, named, fresh_head) for named in _unwrapped(weights.tensors)),
        key=lambda plan: (bool(plan[3]) or not plan[2].loaded, -len(plan[2].loaded) if plan[3] else 0),
    )
    if problems or not report.loaded:
        raise Misfit(name, network, problems, weights)
    _check_offsets(network, source, name)
    notes = [f"{name}: {weights.choice}"] if weights.choice else []
    if weights.is_flax and getattr(network, "gelu", None) == "exact":  # Mixer's
        notes.append(
            f"{name} was trained with the tanh approximation of GELU and the model has the exact one: outputs differ "
            "slightly from Google's; make the model with gelu='tanh' for equal ones"
        )
    return network, source, replace(report, notes=tuple(notes))


def _unwrapped(source: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The source as it is, and with the names that wrappers have added taken off, one more at a time."""
    yield source
    named = {
        ".".join(part for part in key.split(".") if part not in _WRAPPERS_INSIDE): value
        for key, value in source.items()
    }
    if len(named) < len(source):  # two entries of one name: they aren't a wrapper's
        return
    if named.keys() != source.keys():
        yield named
    while True:
        first = {key.partition(".")[0] for key in named if key not in _COUNTERS}
        if len(first) != 1 or (prefix := first.pop()) not in _WRAPPERS_IN_FRONT:
            return
        named = {
            key.removeprefix(f"{prefix}."): value for key, value in named.items() if key not in _COUNTERS
        }
        yield named


def _plan_of_names(
    model: nn.Module, source: dict[str, Tensor], fresh_head: bool
) -> tuple[nn.Module, dict[str, Tensor], WeightsReport, list[str]]:
    body = getattr(getattr(model, "backbone", None), "body", None)
    backbone_only = body is not None and not _is_alike(model, source)
    target: nn.Module = body if body is not None and backbone_only else model
    is_backbone = is_feature_extractor(target)
    network = wrapped_network(target) or target
    if is_backbone:
        source = _backbone_part(source)
        if network is target:
            source = _renamed(source, network)
    report, problems = _match(network, source, is_backbone, fresh_head)
    return network, source, replace(report, backbone_only=backbone_only), problems


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


def _match(
    model: nn.Module, source: dict[str, Tensor], is_backbone: bool, fresh_head: bool
) -> tuple[WeightsReport, list[str]]:
    """Returns which entries go where, and a line for each problem that stands in the way."""
    target = model.state_dict()
    head = _head_keys(model, source)
    optional = tuple(f"{prefix}." for prefix in getattr(model, "optional_weights", ()))
    fresh = {key for key in target.keys() - source.keys() if optional and key.startswith(optional)}
    misshapen = {key for key in source.keys() & target.keys() if source[key].shape != target[key].shape}
    replaced = misshapen & head
    if replaced or fresh_head:  # weight and bias belong together, even if one of them happened to fit
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
    kept = _sorted(head & set(loaded))
    return WeightsReport(loaded, _sorted(replaced), _sorted(dropped), _sorted(fresh), head=kept), problems


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


class Misfit(ValueError):
    """Weights that aren't the model's. `brief`: the message on one line, with the first few entries."""

    def __init__(self, name: str, model: nn.Module, problems: list[str], weights: FileWeights) -> None:
        of = f" ({weights.choice})" if weights.choice else ""
        head, advice = f"{name} does not fit {type(model).__name__}{of}", _advice(problems)
        lines = "\n  ".join(_shown(problems, 20))
        self.brief = f"{head}: {'; '.join(_shown(problems, 5))}. {advice}"
        super().__init__(f"{head}:\n  {lines}\n{advice}")


def _shown(problems: list[str], count: int) -> list[str]:
    more = [f"... and {len(problems) - count} more"] if len(problems) > count else []
    return [*problems[:count], *more] or ["the file holds no entry that fits"]


def _advice(problems: list[str]) -> str:
    """Returns the advice on what to do about the problems."""
    if problems and all(".mlp_tokens." in line or "pos_embed" in line for line in problems):
        return "The file is for another image size: make the model with that img_size."
    if len(problems) == 1 and problems[0].startswith("shape:"):
        return "If it is the first layer, the file is for another in_chans."
    return "Make the model that the file was saved from: the same name and the same options."
