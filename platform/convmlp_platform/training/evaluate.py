"""Held-out metrics, each image counted exactly once over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from convmlp.tasks.task import Metrics
from convmlp_platform.data.loader import EvalLoader, MicroBatch
from convmlp_platform.distributed import sum_over_ranks
from convmlp_platform.engine.base import Engine


def evaluate(
    engine: Engine,
    loader: EvalLoader,
    metrics: Metrics,
    progress: Callable[[], None] = lambda: None,
    watch: Callable[[MicroBatch, Any, Any], None] = lambda batch, outputs, targets: None,
) -> dict[str, float]:
    """`eval/loss` and the task's metrics in per cent, with the averaged weights where the run keeps some.
    `progress` is called after each batch; `watch` with each that counts, the task's outputs and the targets."""
    device = engine.world.device
    metrics = metrics.to(device)
    metrics.reset()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    with engine.averaged_weights():
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
