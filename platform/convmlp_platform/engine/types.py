"""The values that go into an engine and come out of it, and the scale of its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

# Of fp16's loss scale, as torch.amp.GradScaler has them.
FIRST_SCALE, GROWTH_INTERVAL = 65536.0, 2000
DEEPSPEED_BUCKET = 500_000_000
"""Numbers that DeepSpeed reduces at once, by its default."""


State = dict[str, Tensor]
Run = tuple[tuple[int, ...], int]
"""Elements of a tensor that a piece has, in row-major order: the full shape, and the first element."""
Pieces = dict[str, tuple[Tensor, Run | None]]
OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]
SeedFactory = Callable[[int, int], int]


class MicroBatchLike(Protocol):
    """The part of a micro-batch that the engine needs (data.reading.loader has the real one)."""

    @property
    def images(self) -> Tensor | list[Tensor]: ...
    @property
    def targets(self) -> Any: ...
    @property
    def number(self) -> int: ...
    @property
    def ghost(self) -> bool: ...


@dataclass(frozen=True)
class EngineOptions:
    """How a step is computed. `seed_for(step, number)` keys all randomness of a micro-batch's forward pass;
    `mean` and `std` normalise images that come as uint8 pixels (per RGB channel, of pixels in [0, 1])."""

    micro_batch_size: int
    num_micro_batches: int
    seed_for: SeedFactory
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    compile: bool = False
    channels_last: bool = True
    zero_stage: int = 2
    deepspeed: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Computed:
    """The results of forward and backward of a step, float32 0-d tensors on the device.

    `loss`: this rank's part of the step's mean loss (the sum over ranks is the mean); `losses`: the mean loss of each
    of this rank's micro-batches, ghosts included.
    """

    loss: Tensor
    losses: tuple[Tensor, ...]


@dataclass
class EngineState:
    """All that a run's weights depend on, full fp32 tensors on the CPU by parameter name: the same under every
    strategy and world size. `optimizer` is keyed `name/slot` (slot: exp_avg, ...)."""

    model: State
    optimizer: State
    ema: State | None
    updates: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnState:
    """The part of a checkpoint that this rank writes: live tensors by group and name, nothing gathered or copied.

    `runs`: by group and name, for those that are only a run of the full tensor's elements. `changing`: names of the
    tensors that a forward pass changes; all others stay as they are until the next update.
    """

    groups: dict[str, State]
    runs: dict[str, dict[str, Run]]
    changing: frozenset[str]


class LossScale:
    """Loss scaling of fp16: small gradients must not vanish, and no large one overflow (arXiv:1710.03740).

    The factor on the loss: halved after an overflow, doubled after 2,000 updates in a row; 1 unless `enabled`. torch's
    GradScaler learns of an overflow on each rank for itself, and DeepSpeed's use of it never lowers the scale. Here the
    one global gradient norm that all ranks know before the update decides, the same under every strategy.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = FIRST_SCALE if enabled else 1.0
        self._updates = 0

    def updated(self) -> None:
        """The gradients were finite."""
        if not self.enabled:
            return
        self._updates += 1
        if self._updates == GROWTH_INTERVAL:
            self.scale, self._updates = 2 * self.scale, 0

    def overflowed(self) -> bool:
        """The gradients weren't; halves the scale. False where it can't be the scale's fault."""
        if self.scale <= 1.0:
            return False
        self.scale, self._updates = self.scale / 2, 0
        return True

    def state(self) -> dict[str, Any]:
        """As torch's GradScaler names it."""
        return {"scale": self.scale, "_growth_tracker": self._updates}

    def load(self, state: dict[str, Any]) -> None:
        """Undo `state`."""
        if self.enabled:
            self.scale, self._updates = float(state["scale"]), int(state["_growth_tracker"])
