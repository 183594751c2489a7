"""One way to make any model by name: this package's networks and all of timm's."""

import difflib
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from convmlp.models.variants import ALIASES as ALIASES
from convmlp.models.variants import BASELINES as BASELINES
from convmlp.models.variants import VARIANTS as VARIANTS
from convmlp.models.variants import Variant as Variant
from convmlp.weights import load_pretrained


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
    if _variant(name) is None:
        _check_name(name)
    if image_size is not None and _has_fixed_size(name):
        kwargs.setdefault("img_size", image_size)
    try:
        model = _make(name, num_classes, kwargs)
    except ValueError:
        raise
    except Exception as error:  # of options that they can't use networks raise nearly any type
        raise ValueError(f"model {name!r} does not take these options {sorted(kwargs)}: {error}") from error
    if image_size is not None:
        _check_size(name, model, image_size)
    if pretrained_path is not None:
        load_pretrained(model, pretrained_path)
    return model


def _variant(name: str) -> Variant | None:
    return VARIANTS.get(ALIASES.get(name, name))


def _make(name: str, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """Ours are made without timm, unless an option is timm's own (`features_only`)."""
    variant = _variant(name)
    if variant is None or not options.keys() <= signature(variant.model).parameters.keys():
        return _timm().create_model(name, num_classes=num_classes, **options)
    given = {option: value for option, value in options.items() if value is not None}
    model: Any = variant.model(num_classes=num_classes, **{**variant.options, **given})
    # timm describes its networks by these; `timm.data.resolve_model_data_config` reads them.
    tag, described = next(iter(variant.pretrained_cfgs(ALIASES.get(name, name)).items()))
    model.pretrained_cfg = model.default_cfg = {
        **described,
        "architecture": ALIASES.get(name, name),
        "tag": tag.partition(".")[2],
    }
    return model


def _timm() -> Any:
    """timm with our networks among its own."""
    import timm

    import convmlp.models.timm_models  # noqa: F401

    return timm


def _check_name(name: str) -> None:
    timm, has_tag = _timm(), "." in name
    if timm.is_model(name) and (not has_tag or timm.models.is_model_pretrained(name)):
        return
    nearest = difflib.get_close_matches(name, list_models() + timm.list_models(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else f"ours are {', '.join(list_models())}"
    raise ValueError(f"no model is named {name!r}: {hint} (timm.list_models() lists all others)")


def _has_fixed_size(name: str) -> bool:
    if (variant := _variant(name)) is not None:
        return variant.has_fixed_size
    cfg = _timm().get_pretrained_cfg(name, allow_unregistered=True)
    return bool(cfg is not None and cfg.fixed_input_size)


def _check_size(name: str, model: nn.Module, image_size: int | tuple[int, int]) -> None:
    smallest = getattr(model, "min_image_size", 1)
    sides = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if min(sides) < smallest:
        raise ValueError(
            f"images of {sides[0]}x{sides[1]} px are too small for {name}, which needs {smallest}x{smallest} "
            "at least: enlarge them or choose another model"
        )
