"""Held-out metrics, each image counted exactly once over all ranks."""

from __future__ import annotations

import torch
from torchmetrics import MetricCollection

from convmlp_platform.data.loader import EvalLoader
from convmlp_platform.distributed import sum_over_ranks
from convmlp_platform.engine.base import Engine


def evaluate(engine: Engine, loader: EvalLoader, metrics: MetricCollection) -> dict[str, float]:
    """`eval/loss` and the task's metrics in per cent, with the averaged weights where the run keeps some."""
    device = engine.world.device
    metrics = metrics.to(device)
    metrics.reset()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    with engine.averaged_weights():
        for batch in loader:
            loss, logits = engine.eval_step(batch)
            if batch.ghost:
                continue
            labels = batch.labels.to(device)
            metrics.update(logits, labels)
            total += torch.stack(
                [loss.double() * len(labels), torch.tensor(float(len(labels)), device=device)]
            )
    loss_sum, count = sum_over_ranks(total).tolist()
    found = {f"eval/{name}": 100.0 * float(value) for name, value in metrics.compute().items()}
    return {"eval/loss": loss_sum / count, **found}
