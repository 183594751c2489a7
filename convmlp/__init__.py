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
    timm_internals  timm's private names that we use

May import: nothing of ours.
"""

import importlib.abc
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convmlp.models.conv_mlp import ConvMLP
from convmlp.models.cycle_mlp import CycleMLP
from convmlp.models.pure_mlp import PureMLP
from convmlp.zoo import create_model, list_models

if TYPE_CHECKING:
    from convmlp.models.mixer import Mixer

__all__ = [
    "ConvMLP",
    "CycleMLP",
    "Mixer",
    "PureMLP",
    "create_model",
    "list_models",
]


def __getattr__(name: str) -> Any:
    """`convmlp.Mixer` is made of timm's parts, whose import takes seconds: it waits until it is asked for."""
    if name == "Mixer":
        from convmlp.models.mixer import Mixer

        return Mixer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _AfterTimm(importlib.abc.MetaPathFinder):
    """Finds timm as it would be found without; once timm is imported, our networks are among its own."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns None but for timm, the first time."""
        if name != "timm" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("convmlp.models.timm_models")

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


# `timm.create_model` knows our networks once `convmlp` is imported, whichever of the two comes first.
if "timm" in sys.modules:
    importlib.import_module("convmlp.models.timm_models")
else:
    sys.meta_path.insert(0, _AfterTimm())
