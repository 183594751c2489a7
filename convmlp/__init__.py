"""ConvMLP, the networks it is compared with, and their tasks, in plain PyTorch.

Importing this registers the networks with timm.
"""

from convmlp.models.conv_mlp import ConvMLP
from convmlp.models.cycle_mlp import CycleMLP
from convmlp.models.mixer import Mixer
from convmlp.models.pure_mlp import PureMLP
from convmlp.zoo import create_model, list_models

__all__ = [
    "ConvMLP",
    "CycleMLP",
    "Mixer",
    "PureMLP",
    "create_model",
    "list_models",
]
