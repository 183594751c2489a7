"""ConvMLP models and their tasks in plain PyTorch; importing this registers the models with timm."""

from convmlp.model import ConvMLP
from convmlp.zoo import create_model, list_models

__all__ = ["ConvMLP", "create_model", "list_models"]
