"""Learning rate as a pure function of the samples seen: nothing to save, the same on any world size."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

ScheduleName = Literal["cosine", "linear", "poly", "step", "constant"]
DecayFrom = Literal["warmup", "start"]


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
    decay_from: DecayFrom = "warmup",
    power: float = 1.0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    moves_every: int = 1,
    delay_samples: int = 0,
) -> float:
    """Linear warm-up from `warmup_lr` to `base_lr`, decay to `min_lr`, then `cooldown_samples` at `min_lr`.

    Args:
        samples_seen: samples consumed before the step, >= 0; past `total_samples` the last value holds.
        total_samples: the whole run, warm-up and cool-down included.
        name: shape of the decay: half a "cosine" (arXiv:1608.03983, one period), "linear", "poly" (the linear one to
            the `power`), "step" (times `gamma` at each of the `milestones`, but never below `min_lr`), or "constant"
            (no decay). The last two know no cool-down.
        decay_from: where the decay's own count begins: after the "warmup", or at the "start" of the run, so that the
            warm-up covers its beginning (timm's default, and mmcv's; the rate then jumps where the warm-up ends).
        milestones: samples from the start of the run, rising.
        moves_every: samples between two changes of the rate; an epoch's, for schedules that are stepped by epoch.
        delay_samples: all of this comes so much later, the first rate held meanwhile.

    Raises:
        ValueError: unknown name, negative counts, or warm-up and cool-down that exceed the run.
    """
    _check(samples_seen, total_samples, warmup_samples, cooldown_samples, name, decay_from)
    if moves_every < 1:
        raise ValueError(f"moves_every must be at least 1 sample, not {moves_every}")
    seen = max(0, samples_seen // moves_every * moves_every - delay_samples)
    if seen < warmup_samples:
        return warmup_lr + (base_lr - warmup_lr) * (seen / warmup_samples)
    if name == "constant":
        return base_lr
    if name == "step":
        return max(min_lr, base_lr * gamma ** sum(seen >= milestone for milestone in milestones))
    begin = warmup_samples if decay_from == "warmup" else 0
    decay_samples = total_samples - cooldown_samples - begin
    if seen - begin >= decay_samples:
        return min_lr
    return min_lr + (base_lr - min_lr) * _remaining(name, (seen - begin) / decay_samples, power)


def _remaining(name: ScheduleName, progress: float, power: float) -> float:
    """Returns the share of the way from the base rate to the lowest one that is left at `progress` in [0, 1) of the
    decay."""
    match name:
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return 1 - progress
        case "poly":
            return float((1 - progress) ** power)
    raise ValueError(f"schedule {name!r} has no decay")


def _check(samples_seen: int, total: int, warmup: int, cooldown: int, name: str, decay_from: str) -> None:
    if name not in get_args(ScheduleName):
        raise ValueError(f"schedule must be one of {', '.join(get_args(ScheduleName))}, not {name!r}")
    if decay_from not in get_args(DecayFrom):
        raise ValueError(f"decay_from must be warmup or start, not {decay_from!r}")
    if min(samples_seen, total, warmup, cooldown) < 0:
        raise ValueError(
            "sample counts must not be negative: got "
            f"samples_seen={samples_seen}, total={total}, warmup={warmup}, cooldown={cooldown}"
        )
    if warmup + cooldown > total:
        raise ValueError(
            f"warm-up ({warmup} samples) and cool-down ({cooldown}) exceed the whole run ({total} samples)"
        )
