"""Held-out metrics, each image counted exactly once over all ranks; of a run that averages its weights, by the average
and, where that may be much worse or better, by the plain weights too.

Both are judged at the run's last evaluation, and at each while the run has made fewer than ten spans of the average of
updates, a span being 1 / (1 - training.ema_decay). After that the average holds what the run has lately been, and
judging one spares an evaluation. The better of both is taken: `eval/top1` is its own, `eval_average/top1` and
`eval_plain/top1` say both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch

from convmlp.tasks.task import Metrics
from convmlp_platform.data.reading.loader import EvalLoader, MicroBatch
from convmlp_platform.distributed import sum_over_ranks
from convmlp_platform.engine.engine import Engine

Weights = Literal["average", "plain"]
"""The moving average of the weights, or those that the optimizer moves."""

TAKEN = "eval/"
"""How names of an evaluation's metrics begin: those of the weights that were taken."""
_JUDGED: dict[Weights, str] = {"average": "eval_average/", "plain": "eval_plain/"}
_SPANS = 10


def judge(
    engine: Engine, loader: EvalLoader, metrics: Metrics, progress: Callable[[], None], *, last: bool
) -> dict[str, float]:
    """`eval/...` as `evaluate` gives them, of the better weights, with both sets' where both are judged (collective).

    Args:
        last: whether the run ends here.
    """
    if not judges_both(engine, last=last):
        return evaluate(engine, loader, metrics, progress)
    found = {
        "average": evaluate(engine, loader, metrics, progress),
        "plain": evaluate(engine, loader, metrics, progress, averaged=False),
    }
    best = engine.task.best_metric
    taken = "plain" if merit(found["plain"], best) > merit(found["average"], best) else "average"
    both = {
        prefix + name.removeprefix(TAKEN): value
        for weights, prefix in _JUDGED.items()
        for name, value in found[weights].items()
    }
    return found[taken] | both


def judges_both(engine: Engine, *, last: bool) -> bool:
    """Whether average and plain weights may differ so much that both are to be judged."""
    return engine.ema is not None and (last or engine.updates * (1.0 - engine.ema.decay) < _SPANS)


def merit(metrics: Mapping[str, float], best_metric: str | Any) -> tuple[float, float]:
    """Of two evaluations the better one's is greater; a detector's precision is long 0, while its loss falls."""
    score, loss = metrics[f"eval/{best_metric}"], metrics["eval/loss"]
    return -math.inf if math.isnan(score) else score, -math.inf if math.isnan(loss) else -loss


def taken_weights(metrics: Mapping[str, float], *, averages: bool) -> Weights:
    """The weights that an evaluation's `eval/...` are of.

    Args:
        averages: whether the run averages its weights.
    """
    if not (plain := scores_of(metrics, "plain")):
        return "average" if averages else "plain"
    average, taken = scores_of(metrics, "average"), scores_of(metrics)
    return "plain" if str(taken) == str(plain) != str(average) else "average"  # NaN is NaN


def scores_of(metrics: Mapping[str, float], weights: Weights | None = None) -> dict[str, float]:
    """Name, without what it begins with → value: of the weights that were taken; or of the given ones, empty where both
    were not judged."""
    prefix = TAKEN if weights is None else _JUDGED[weights]
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def evaluate(
    engine: Engine,
    loader: EvalLoader,
    metrics: Metrics,
    progress: Callable[[], None] = lambda: None,
    watch: Callable[[MicroBatch, Any, Any], None] = lambda batch, outputs, targets: None,
    *,
    averaged: bool = True,
) -> dict[str, float]:
    """`eval/loss` and the task's metrics in per cent (collective).

    Args:
        progress: is called after each batch.
        watch: is called with each batch that counts, the task's outputs and the targets.
        averaged: take the averaged weights, where the run keeps some.
    """
    device = engine.world.device
    metrics = metrics.to(device)
    metrics.reset()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    with engine.averaged_weights() if averaged else nullcontext():
        for batch in loader:
            loss, outputs, targets = engine.eval_step(batch)
            progress()
            if batch.ghost:
                continue
            metrics.update(outputs, targets)
            watch(batch, outputs, targets)
            total += torch.stack(
                [loss.double() * len(targets), torch.tensor(float(len(targets)), device=device)]
            )
    loss_sum, count = sum_over_ranks(total).tolist()
    found = {f"eval/{name}": 100.0 * float(value) for name, value in metrics.compute().items()}
    return {"eval/loss": loss_sum / count, **found}
