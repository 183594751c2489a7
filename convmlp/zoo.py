"""One registry and one way to make any model by name: this package's networks and all of timm's."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from convmlp.models.cycle_mlp import CycleMLP
from convmlp.models.mixer import Mixer
from convmlp.variants import ALIASES, BASELINES, VARIANTS
from convmlp.weights import load_pretrained

# timm takes these from the module of the function that it registers.
default_cfgs = generate_default_cfgs(
    {tag: cfg for name, variant in VARIANTS.items() for tag, cfg in variant.pretrained_cfgs(name).items()}
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    variant = VARIANTS[name]
    if variant.model is CycleMLP and kwargs.get("features_only"):
        kwargs.setdefault("feature_norms", True)
    # None is every map; isotropic networks have one per block, of which timm's habit is the last three.
    out_indices = 3 if variant.model is Mixer else None
    return build_model_with_cfg(
        variant.model,
        name,
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        pretrained_filter_fn=_published_state,
        **({**variant.options} | kwargs),
    )


def _published_state(state: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A published file's weights for timm's strict loading: `pretrained=True` passes it a downloaded file."""
    state = state.get("model", state)
    optional = tuple(f"{prefix}." for prefix in getattr(model, "optional_weights", ()))
    if optional:
        own = model.state_dict()
        fresh = {key: value for key, value in own.items() if key.startswith(optional)}
        state = {key: value for key, value in state.items() if key in own} | fresh
    return state


def _entry_point(name: str, published_name: str) -> Callable[..., nn.Module]:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _build(published_name, pretrained, **kwargs)

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = VARIANTS[published_name].summary
    return entry_point


for _name in (*VARIANTS, *ALIASES):
    register_model(_entry_point(_name, ALIASES.get(_name, _name)))


def list_models(baselines: bool = False) -> list[str]:
    """Names of this package's networks, by family and size; `timm.list_models()` lists all that can be made.

    Args:
        baselines: add the ResNets, RegNets and ViTs of timm that the papers compare with.
    """
    return [*VARIANTS, *(BASELINES if baselines else ())]


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    pretrained_path: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make one of this package's networks, or any other that timm knows, by name.

    Args:
        name: e.g. "convmlp_s", "mixer_b16", "cyclemlp_b1", "resnet18".
        num_classes: size of the head; 0 leaves it out.
        pretrained_path: a local file of weights for `convmlp.weights.load_pretrained`.
        image_size: of the images the model will see, in pixels; what Mixer, ViT and other networks of a fixed
            input size are made for (224 by default, as published).
        kwargs: passed to the model, e.g. `drop_path_rate=0.2`, `dims=(64, 128, 256)`, `features_only=True`.

    Raises:
        ValueError: no such model, an option or image size the model does not take, or a file that does not fit.
    """
    _check_name(name)
    if image_size is not None and _has_fixed_size(name):
        kwargs.setdefault("img_size", image_size)
    try:
        model = timm.create_model(name, num_classes=num_classes, **kwargs)
    except ValueError:
        raise
    except Exception as error:  # of options that they can't use networks raise nearly any type
        raise ValueError(f"model {name!r} does not take these options {sorted(kwargs)}: {error}") from error
    if image_size is not None:
        _check_size(name, model, image_size)
    if pretrained_path is not None:
        load_pretrained(model, pretrained_path)
    return model


def _check_name(name: str) -> None:
    has_tag = "." in name
    if timm.is_model(name) and (not has_tag or timm.models.is_model_pretrained(name)):
        return
    nearest = difflib.get_close_matches(name, list_models() + timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else f"ours are {', '.join(list_models())}"
    raise ValueError(f"no model is named {name!r}: {hint} (timm.list_models() lists all others)")


def _has_fixed_size(name: str) -> bool:
    cfg = timm.get_pretrained_cfg(ALIASES.get(name, name), allow_unregistered=True)
    return bool(cfg is not None and cfg.fixed_input_size)


def _check_size(name: str, model: nn.Module, image_size: int | tuple[int, int]) -> None:
    smallest = getattr(model, "min_image_size", 1)
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if min(sides) < smallest:
        raise ValueError(
            f"images of {sides[0]}x{sides[1]} px are too small for {name}, which needs {smallest}x{smallest} "
            "at least: enlarge them or choose another model"
        )
