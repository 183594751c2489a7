"""The Mixer paper's orders of pixels, shown to a finished model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convmlp.tasks.task import Metrics
from convmlp.transforms.pixel_order import Order, instead_of, permute_pixels, pixel_order
from convmlp_platform.config.evaluate_job import PermutationSection
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.engine.engine import Engine
from convmlp_platform.evaluation.result import Permutation, Permuted


@dataclass(frozen=True)
class _Row:
    kind: Any
    order: Order
    metrics: Metrics


class PermutedPixels:
    """Computes each batch once more for every order.

    Args:
        fresh: makes the task's metrics.
        applied: the order that the images come in already, of a model that was trained so.
    """

    def __init__(
        self,
        engine: Engine,
        section: PermutationSection,
        fresh: Any,
        image_size: int,
        applied: Order | None,
    ) -> None:
        self._engine, self._section = engine, section
        self._rows = []
        for kind in section.kinds:
            order = pixel_order(
                kind, image_size, image_size, patch_size=section.patch_size, seed=section.seed
            )
            metrics = fresh().to(engine.world.device)
            self._rows.append(_Row(kind, instead_of(order, applied), metrics))

    @torch.no_grad()
    def update(self, batch: MicroBatch) -> None:
        """Take in a batch as it was read."""
        for row in self._rows:
            assert isinstance(batch.images, Tensor)
            images = permute_pixels(batch.images, row.order)
            _, outputs, targets = self._engine.eval_step(replace(batch, images=images))
            row.metrics.update(outputs, targets)

    def result(self) -> Permutation | None:
        """Of all batches; None where no order was asked for."""
        if not self._rows:
            return None
        rows = [
            Permuted(
                kind=row.kind,
                metrics={name: 100.0 * float(value) for name, value in row.metrics.compute().items()},
            )
            for row in self._rows
        ]
        return Permutation(patch_size=self._section.patch_size, seed=self._section.seed, rows=rows)
