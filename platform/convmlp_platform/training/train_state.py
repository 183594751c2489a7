"""The state of a run: its steps, and the metrics of its evaluations."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """`step` steps are done, which used `samples_seen` samples: with the job, that is the whole data state.

    `attempt` is the start of training that did the last of them, 0 before any (ledger.ledger).
    `metrics` are those of the newest evaluation, which was after `evaluated` steps (0: there was none); `best` those of
    the evaluation whose weights were kept.
    """

    step: int = 0
    samples_seen: int = 0
    attempt: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    evaluated: int = 0
