"""Vision models and tasks in pure PyTorch; no Ray, no YAML, no files but weights.

Files in reading order:

    zoo           One registry and one way to make any model by name
    models/       The networks: each is a backbone with a head
    tasks/        A task joins model, loss and metrics: `Task.forward(batch)` returns the loss
    transforms/   Augmentation: each image by itself, keyed by a seed
    weights       Load released weights into a model, or refuse
    weight_files  Read a file of weights as a state_dict, by what is in it
    optim         Optimizers by name, through timm
    schedule      Learning rate as a pure function of the samples seen
    model_cost    The cost of networks and of tasks' whole models
    feature_maps  The feature maps that a network makes of an image, stage by stage
    export        Networks as programs without Python

May import: nothing of ours.
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
