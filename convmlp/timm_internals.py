"""timm's private names that we use. Nobody promises them: tests/convmlp/test_timm_internals.py fails by name where an
upgrade takes one away. Tried with timm 1.0.31.

The functions import nothing: where timm isn't imported, no model is one of its.
"""

import sys
from typing import Any

from torch import nn


def wrapped_network(model: nn.Module) -> nn.Module | None:
    """The network in timm's `FeatureGetterNet`, which `features_only=True` makes of ours; None: the model is none."""
    features: Any = sys.modules.get("timm.models._features")
    return model.model if features is not None and isinstance(model, features.FeatureGetterNet) else None


def is_feature_extractor(model: nn.Module) -> bool:
    """Whether the model is one of timm's wrappers that return feature maps (`features_only=True`)."""
    features: Any = sys.modules.get("timm.models._features")
    kinds = ("FeatureGetterNet", "FeatureDictNet", "FeatureHookNet")
    return features is not None and isinstance(model, tuple(getattr(features, kind) for kind in kinds))
