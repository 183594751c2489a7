"""Putting a step whose numbers are wrong on record: what it was computed from, and what is done about it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.distributed as dist
from torch import Tensor

from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.distributed import on_main
from convmlp_platform.engine.engine import Engine
from convmlp_platform.engine.types import Computed
from convmlp_platform.training.guard import incidents
from convmlp_platform.training.guard.agreement import Agreement
from convmlp_platform.training.guard.guard import Action, Guard, GuardVerdict
from convmlp_platform.training.guard.incidents import MicroBatchRecord
from data_prep.console import some_of

logger = logging.getLogger(__name__)

# Sample ids that an error or a line names; the incident has them all.
_SHOWN = 16


@dataclass(frozen=True)
class BadStep:
    """The same on every rank.

    Args:
        action: what is done: `ACCEPT` (computed again, it was right), `SKIP`, `ROLLBACK` or `STOP`.
        loss, grad_norm: of the computation that was wrong.
        samples: ids of the micro-batches whose loss isn't finite; where all are, of the whole step.
        back_to: steps that are left after a rollback.
        incident: its folder; None where the storage refused it.
    """

    step: int
    kind: Literal["non_finite", "spike"]
    action: Action
    message: str
    loss: float
    grad_norm: float
    samples: tuple[int, ...]
    skipped: int
    recomputed: int
    rollbacks: int
    incident: Path | None
    back_to: int | None = None

    @property
    def shown_samples(self) -> str:
        """Some of the ids, in words."""
        return some_of([str(sample) for sample in self.samples], _SHOWN)


@dataclass
class Suspect:
    """A computation that was found wrong, with the weights it was computed from where they are kept."""

    agreed: Agreement
    computed: Computed
    weights: dict[str, Tensor] | None


class BadSteps:
    """Writes incidents into the run's folder."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def suspect(self, agreed: Agreement, computed: Computed) -> Suspect:
        """Keep what a computation gave, after its gradients were refused (collective)."""
        keep = on_main(self.engine.world, lambda: incidents.keeps_weights(self.folder))
        return Suspect(agreed, computed, self.engine.full_model_state() if keep else None)

    def record(
        self,
        step: int,
        suspect: Suspect,
        verdict: GuardVerdict,
        micro_batches: Sequence[MicroBatch],
        *,
        lr: float,
        attempt: int,
        guard: Guard,
        back_to: int | None = None,
    ) -> BadStep:
        """Record an incident (collective). A storage that refuses costs the incident, not the run."""
        agreed = suspect.agreed
        batch = self._whole_step(suspect.computed, micro_batches)
        counts = {
            "skipped": guard.skipped,
            "recomputed": guard.recomputed,
            "rollbacks": guard.rollbacks.total + (verdict.action is Action.ROLLBACK),
        }
        assert verdict.kind is not None
        kind, message = verdict.kind, verdict.message

        def write() -> Path | None:
            try:
                return incidents.capture(
                    self.folder,
                    kind,
                    step,
                    attempt=attempt,
                    world_size=self.engine.world.size,
                    loss=agreed.loss,
                    grad_norm=agreed.grad_norm,
                    lr=lr,
                    action=verdict.action.value,
                    micro_batches=batch,
                    weights=suspect.weights,
                    message=message,
                    back_to=back_to,
                    **counts,
                )
            except OSError as error:
                logger.warning("step %d: its incident can't be written to %s: %s", step, self.folder, error)
                return None

        path = on_main(self.engine.world, write)
        return BadStep(
            step,
            kind,
            verdict.action,
            message,
            agreed.loss,
            agreed.grad_norm,
            _suspicious(batch),
            incident=path,
            back_to=back_to,
            **counts,
        )

    def _whole_step(self, computed: Computed, micro_batches: Sequence[MicroBatch]) -> list[MicroBatchRecord]:
        mine = incidents.part_of(micro_batches, [float(loss) for loss in computed.losses])
        parts = [mine] * self.engine.world.size
        if self.engine.world.size > 1:
            dist.all_gather_object(parts, mine)
        return incidents.merged(parts)


def _suspicious(batch: Sequence[Mapping[str, object]]) -> tuple[int, ...]:
    records = [record for record in batch if not _finite(record["loss"])] or batch
    return tuple(sample for record in records for sample in record["samples"])  # type: ignore[attr-defined]


def _finite(loss: object) -> bool:
    return isinstance(loss, float) and math.isfinite(loss)
