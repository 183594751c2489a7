"""By which samples a step's numbers go wrong.

The search for the samples that make a micro-batch fail. It tries parts of the micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from convmlp.tasks.classification import ClassificationTask
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.engine.engine import Engine, seed_all
from convmlp_platform.replay.partial_step import Fault, PartialStep, kept_buffers

MOST_CULPRITS = 8
"""After so many the search ends: then it isn't single samples."""

Places = Sequence[int]


@dataclass(frozen=True)
class Search:
    """The result of the search.

    Args:
        culprits: places that fail alone, in the order in which they were found.
        group: the smallest set of places that was seen to fail where no single one of it does; else empty.
        rest_is_fine: whether the micro-batch without the culprits passes; None: not tried, nothing is left.
        runs: how many parts were tried.
    """

    culprits: list[int]
    group: list[int]
    rest_is_fine: bool | None
    runs: int


def find_culprits(fails: Callable[[Places], bool], size: int) -> Search:
    """Search the places 0..size - 1, which are known to fail together.

    Halves are tried: where the first passes, the second must fail, and at the end the one place that is left must
    fail alone, and the others must pass without it. A single culprit takes at most ceil(log2(size)) + 2 trials;
    of several, each takes as many. If only several together fail, no culprit is named but the smallest set that
    was seen to fail.

    Args:
        fails: whether these places alone fail; called with at least one.
    """
    runs = 0

    def tried(places: list[int]) -> bool:
        nonlocal runs
        runs += 1
        return fails(places)

    culprits: list[int] = []
    rest = list(range(size))
    while True:
        suspects, seen = rest, rest
        while len(suspects) > 1:
            first = suspects[: len(suspects) // 2]
            if tried(first):
                suspects = seen = first
            else:
                suspects = suspects[len(first) :]
        if seen != suspects and not tried(suspects):
            return Search(culprits, seen, False, runs)
        culprits += suspects
        rest = [place for place in rest if place not in suspects]
        if not rest:
            return Search(culprits, [], None, runs)
        if not tried(rest):
            return Search(culprits, [], True, runs)
        if len(culprits) >= MOST_CULPRITS:
            return Search(culprits, [], False, runs)


MOST_SEARCHED = 4
"""Of so many failing micro-batches the samples are searched: where more fail, it is hardly for their samples."""


@dataclass(frozen=True)
class SampleLoss:
    """One sample of a step, and its loss.

    Of classification it is cross entropy without label smoothing: `loss` in training, within its micro-batch but not
    mixed with another; `alone` in evaluation mode, where no sample depends on another. Of other tasks both are the
    loss of the sample computed by itself in training.
    """

    number: int
    place: int
    sample: int
    epoch: int
    replaced: bool
    loss: float
    alone: float


@dataclass(frozen=True)
class MicroBatchFindings:
    """The cause of a micro-batch that is not finite: its first faulty layer, and the result of the sample search.

    `culprits` are the samples that make the micro-batch fail by themselves. If samples were `mixed` in pairs, and
    neither or both samples of a pair fail alone, `culprits` names both.
    """

    number: int
    fault: Fault | None
    search: Search
    mixed: bool
    culprits: list[SampleLoss]


@dataclass(frozen=True)
class SampleFindings:
    """All samples of a step, and the micro-batches that fail: numbers of all, and what was found of the first."""

    samples: list[SampleLoss]
    failing: list[int]
    blames: list[MicroBatchFindings]

    @property
    def offenders(self) -> list[SampleLoss]:
        """The samples to look at: those that make the step fail, else all, the largest losses first."""
        guilty = [sample for blame in self.blames for sample in blame.culprits]
        return guilty or sorted(self.samples, key=_height, reverse=True)


def search_samples(
    engine: Engine, step: int, micro_batches: Sequence[MicroBatch], losses: Sequence[float], finite: bool
) -> SampleFindings:
    """Every sample's loss, and if the step isn't `finite`, which samples make it so.

    Args:
        losses: of the micro-batches, as they were computed.
        finite: whether loss and gradient of the whole step are.
    """
    by_number = {micro.number: _samples(engine, micro, step) for micro in micro_batches}
    failing = [micro for micro, loss in zip(micro_batches, losses, strict=True) if not math.isfinite(loss)]
    if not finite and not failing:  # a gradient alone
        failing = [micro for micro in micro_batches if _fails(engine, micro, step)]
    blames = [_blame(engine, micro, step, by_number[micro.number]) for micro in failing[:MOST_SEARCHED]]
    samples = [sample for found in by_number.values() for sample in found]
    return SampleFindings(samples, [micro.number for micro in failing], blames)


def _fails(engine: Engine, micro: MicroBatch, step: int) -> bool:
    trial = PartialStep(engine, micro, step)
    return trial.fails(range(len(trial.units)))


def _blame(engine: Engine, micro: MicroBatch, step: int, samples: Sequence[SampleLoss]) -> MicroBatchFindings:
    trial = PartialStep(engine, micro, step)
    fault, search = trial.first_fault(), find_culprits(trial.fails, len(trial.units))
    culprits: list[SampleLoss] = []
    for unit in search.culprits:
        places = sorted(set(trial.units[unit]))
        sure = [place for place in places if not math.isfinite(samples[place].alone)]
        culprits += [samples[place] for place in (sure or places)]
    return MicroBatchFindings(micro.number, fault, search, trial.mixed is not None, culprits)


def _samples(engine: Engine, micro: MicroBatch, step: int) -> list[SampleLoss]:
    """The samples of a micro-batch with their losses; the model is left as it was."""
    if isinstance(engine.task, ClassificationTask):
        losses = [_class_losses(engine, micro, step, training) for training in (True, False)]
    else:
        trial = PartialStep(engine, micro, step)
        losses = [[trial.loss(unit) for unit in range(len(trial.units))]] * 2
    facts = (micro.sample_ids, micro.epochs, micro.replaced)
    rows = zip(*(fact.tolist() for fact in facts), *losses, strict=True)
    return [SampleLoss(micro.number, place, *row) for place, row in enumerate(rows)]


@torch.no_grad()
def _class_losses(engine: Engine, micro: MicroBatch, step: int, training: bool) -> list[float]:
    """Each sample's cross entropy, unmixed."""
    task: Any = engine.task
    images, labels = engine.to_device(micro)
    task.train(training)
    mixing, task.mixing = task.mixing, None
    try:
        with kept_buffers(task), engine.forward_context(last=True):
            seed_all(engine.options.seed_for(step, micro.number))
            logits = engine.wrapped(images, labels)[1].float()
    finally:
        task.mixing = mixing
    found: list[float] = F.cross_entropy(logits, labels, reduction="none").tolist()
    return found


def _height(sample: SampleLoss) -> float:
    """Returns the sample's loss as a sort key; a loss that is not finite counts as infinity."""
    return sample.loss if math.isfinite(sample.loss) else math.inf
