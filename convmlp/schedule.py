"""Learning rate as a pure function of the samples seen: nothing to save, the same on any world size."""

import math
from typing import Literal

ScheduleName = Literal["cosine", "linear", "constant"]


def lr_at(
    samples_seen: int,
    *,
    base_lr: float,
    total_samples: int,
    warmup_samples: int = 0,
    warmup_lr: float = 0.0,
    min_lr: float = 0.0,
    cooldown_samples: int = 0,
    name: ScheduleName = "cosine",
) -> float:
    """Linear warm-up from `warmup_lr` to `base_lr`, decay to `min_lr`, then `cooldown_samples` at `min_lr`.

    Args:
        samples_seen: samples consumed before the step, >= 0; past `total_samples` the last value holds.
        total_samples: the whole run, warm-up and cool-down included.
        name: shape of the decay: half a "cosine" (arXiv:1608.03983, one period), "linear", or "constant"
            (no decay: `base_lr` from the warm-up on; `min_lr` and the cool-down have no effect).

    Raises:
        ValueError: unknown name, negative counts, or warm-up and cool-down that exceed the run.
    """
    _check(samples_seen, total_samples, warmup_samples, cooldown_samples, name)
    if samples_seen < warmup_samples:
        return warmup_lr + (base_lr - warmup_lr) * (samples_seen / warmup_samples)
    if name == "constant":
        return base_lr
    decay_samples = total_samples - warmup_samples - cooldown_samples
    past_warmup = samples_seen - warmup_samples
    if past_warmup >= decay_samples:
        return min_lr
    progress = past_warmup / decay_samples
    remaining = (1 + math.cos(math.pi * progress)) / 2 if name == "cosine" else 1 - progress
    return min_lr + (base_lr - min_lr) * remaining


def _check(samples_seen: int, total: int, warmup: int, cooldown: int, name: str) -> None:
    if name not in ("cosine", "linear", "constant"):
        raise ValueError(f"schedule must be cosine, linear or constant, not {name!r}")
    if min(samples_seen, total, warmup, cooldown) < 0:
        raise ValueError(
            "sample counts must not be negative: got "
            f"samples_seen={samples_seen}, total={total}, warmup={warmup}, cooldown={cooldown}"
        )
    if warmup + cooldown > total:
        raise ValueError(
            f"warm-up ({warmup} samples) and cool-down ({cooldown}) exceed the whole run ({total} samples)"
        )
