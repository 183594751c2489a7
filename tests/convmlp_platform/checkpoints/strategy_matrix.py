"""Every strategy on several world sizes, saving and loading real checkpoints of a model that is hard on them."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate_state import forget_accelerate
from product_step import take_step
from torch import Tensor, nn

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.layout import Part
from convmlp_platform.checkpoints.tensor_file import TensorSlice
from convmlp_platform.data.sample_order import derive_key, share_of
from convmlp_platform.distributed import joined_world, on_main, wait_for_all
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import EngineOptions, EngineState
from convmlp_platform.training.build.parts import create_engine

STRATEGIES = {
    "ddp": ("ddp", 1),
    "fsdp": ("fsdp", 1),
    "zero1": ("deepspeed", 1),
    "zero2": ("deepspeed", 2),
    "zero3": ("deepspeed", 3),
}
MICRO_BATCHES, MICRO_BATCH_SIZE, CLASSES = 4, 2, 5


class OddTask(nn.Module):
    """BatchNorm's buffers, scalars, sizes that no world size divides, and weights large enough to be sharded."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 9, 3, bias=False),
            nn.BatchNorm2d(9),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.LayerNorm(81),
            nn.Linear(81, 701),
            nn.GELU(),
            nn.Linear(701, CLASSES),
        )

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images).float()
        return nn.functional.cross_entropy(logits, labels), logits


class Micro:
    """A micro-batch that depends on its step and number alone."""

    def __init__(self, step: int, number: int, ghost: bool) -> None:
        draw = torch.Generator().manual_seed(100 * step + number)
        self.images = torch.randn(MICRO_BATCH_SIZE, 3, 8, 8, generator=draw)
        self.targets = torch.randint(0, CLASSES, (MICRO_BATCH_SIZE,), generator=draw)
        self.number, self.ghost = number, ghost


def two_groups(module: nn.Module) -> torch.optim.Optimizer:
    """AdamW that decays matrices only: two parameter groups, which ZeRO keeps apart."""
    decayed = [p for p in module.parameters() if p.ndim > 1]
    plain = [p for p in module.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    )


def build(name: str, seed: int) -> Engine:
    """An engine of a named strategy with fresh weights."""
    forget_accelerate()
    torch.manual_seed(seed)
    strategy, zero_stage = STRATEGIES[name]
    options = EngineOptions(
        micro_batch_size=MICRO_BATCH_SIZE,
        num_micro_batches=MICRO_BATCHES,
        seed_for=lambda step, number: derive_key(5, step, number),
        clip_grad_norm=1.0,
        ema_decay=0.7,
        zero_stage=zero_stage,
    )
    with joined_world(use_gpu=False) as world:
        return create_engine(strategy, OddTask(), two_groups, options, world)


def train(engine: Engine, step: int) -> float:
    """One step; the mean loss over all ranks."""
    share = share_of(engine.world.rank, engine.world.size, MICRO_BATCHES)
    micros = [Micro(step, n, i >= share.real) for i, n in enumerate(share.numbers)]
    return take_step(engine, micros, step=step, lr=0.01).agreed.loss


def save(engine: Engine, folder: Path, step: int) -> None:
    """Commit the engine's state as runs do: each rank its own part, while the next step's passes run (collective)."""
    world, own = engine.world, engine.own_state()
    slices = {
        group: {name: TensorSlice(shape, start) for name, (shape, start) in runs.items()}
        for group, runs in own.runs.items()
    }
    checkpoint = Checkpoint(
        step, own.groups, {"updates": engine.updates, "extra": engine.extra_state()}, slices
    )
    if world.is_main or engine.every_rank_writes:
        part = Part(world.rank, world.size) if engine.every_rank_writes else Part()
        saver = AsyncCheckpointer(Checkpointer(folder), part=part, session="a1")
        saver.save(checkpoint, changing=own.changing)
        engine.before_update = saver.settle
        saver.close()
    wait_for_all(world)


def resume(engine: Engine, folder: Path) -> Checkpoint:
    """Load the newest checkpoint into the engine (collective)."""
    location = on_main(engine.world, Checkpointer(folder).newest)
    assert location is not None
    found = load(location)
    groups = found.tensors
    engine.load_state(
        EngineState(
            groups["model"], groups["optimizer"], groups["ema"], found.facts["updates"], found.facts["extra"]
        )
    )
    return found


def write_all(root: Path, names: list[str], world_size: int) -> dict[str, float]:
    """Train two steps and save, by each strategy; returns the loss of the step after."""
    losses = {}
    for name in names:
        engine = build(name, seed=0)
        train(engine, 0)
        train(engine, 1)
        save(engine, root / f"{name}-{world_size}", 2)
        # What each rank wrote of its own is what gathering gives.
        newest = on_main(engine.world, Checkpointer(root / f"{name}-{world_size}").newest)
        assert newest is not None
        assert_equal(engine.state(), load(newest), f"{name} writing")
        losses[f"{name}-{world_size}"] = train(engine, 2)
    return losses


def read_all(root: Path, names: list[str], writers: list[str]) -> dict[tuple[str, str], float]:
    """Go on from every writer's checkpoint, by each strategy: (reader, writer) → loss of the step after.

    Raises:
        AssertionError: a weight, average or optimizer slot isn't what the checkpoint has, to the bit.
    """
    losses = {}
    for name in names:
        engine = build(name, seed=1)
        for number, writer in enumerate(writers):
            train(engine, 50 + number)  # what the resume must wipe out
            found = resume(engine, root / writer)
            assert_equal(engine.state(), found, f"{name} from {writer}")
            losses[name, writer] = train(engine, 2)
    return losses


def assert_equal(state: EngineState, wanted: Checkpoint, what: str) -> None:
    """Bit for bit, by name."""
    assert state.updates == wanted.facts["updates"] == 2
    assert state.ema is not None
    for group, tensors in {"model": state.model, "optimizer": state.optimizer, "ema": state.ema}.items():
        assert tensors.keys() == wanted.tensors[group].keys(), (what, group)
        for name, tensor in wanted.tensors[group].items():
            assert tensors[name].dtype == tensor.dtype, (what, group, name)
            assert torch.equal(tensors[name], tensor), (what, group, name)
