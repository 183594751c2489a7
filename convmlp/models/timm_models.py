"""Our networks among timm's: `timm.create_model` makes them, `timm.list_models` lists them. Importing this registers
them; `convmlp` does that as soon as both it and timm are imported."""

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from convmlp.models.variants import ALIASES, VARIANTS

# timm takes these from the module of the function that it registers.
default_cfgs = generate_default_cfgs(
    {tag: cfg for name, variant in VARIANTS.items() for tag, cfg in variant.pretrained_cfgs(name).items()}
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    variant = VARIANTS[name]
    if variant.network == "CycleMLP" and kwargs.get("features_only"):
        kwargs.setdefault("feature_norms", True)
    # None is every map; isotropic networks have one per block, of which timm's habit is the last three.
    out_indices = 3 if variant.network == "Mixer" else None
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
