"""timm's private names that `convmlp.timm_internals` uses: where an upgrade takes one away, this fails by name."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from convmlp import create_model
from convmlp.timm_internals import is_feature_extractor, wrapped_network

NEEDED_BY = "loading a classifier's weights into a detector's backbone (convmlp/weights.py) depends on it"


@pytest.mark.parametrize("name", ["FeatureGetterNet", "FeatureDictNet", "FeatureHookNet"])
def test_the_wrappers_of_features_only_are_there(name: str) -> None:
    import timm.models._features as features

    assert isinstance(getattr(features, name, None), type), (
        f"timm: no timm.models._features.{name}; {NEEDED_BY}"
    )


def test_features_only_gives_one_of_them() -> None:
    ours = create_model("convmlp_tiny", features_only=True)
    assert is_feature_extractor(ours), f"timm: features_only gives a {type(ours).__name__}; {NEEDED_BY}"
    network = wrapped_network(ours)
    assert type(network).__name__ == "ConvMLP", (
        f"timm: FeatureGetterNet.model is {type(network)}; {NEEDED_BY}"
    )
    theirs = timm.create_model("resnet18", features_only=True)
    assert is_feature_extractor(theirs), f"timm: features_only gives a {type(theirs).__name__}; {NEEDED_BY}"
    assert wrapped_network(theirs) is None
    assert not is_feature_extractor(nn.Linear(1, 1)) and wrapped_network(nn.Linear(1, 1)) is None
