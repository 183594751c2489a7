"""The class that `engine.strategy` means. Imports are local: nobody pays for a library they don't use."""

from __future__ import annotations

from torch import nn

from convmlp_platform.distributed import World
from convmlp_platform.engine.base import Engine
from convmlp_platform.engine.types import EngineOptions, OptimizerFactory


def create_engine(
    strategy: str, task: nn.Module, make_optimizer: OptimizerFactory, options: EngineOptions, world: World
) -> Engine:
    """The engine for `task` (a module with the network as `.model`, called with images and labels, returning
    the micro-batch's mean loss and the logits)."""
    match strategy:
        case "ddp":
            from convmlp_platform.engine.ddp import DdpEngine

            return DdpEngine(task, make_optimizer, options, world)
        case "fsdp":
            from convmlp_platform.engine.fsdp import FsdpEngine

            return FsdpEngine(task, make_optimizer, options, world)
        case "deepspeed":
            from convmlp_platform.engine.deepspeed import DeepSpeedEngine

            return DeepSpeedEngine(task, make_optimizer, options, world)
    raise ValueError(f"unknown strategy {strategy!r}")
