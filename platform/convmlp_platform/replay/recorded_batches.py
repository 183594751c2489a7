"""Reading again what a run consumed: the micro-batches of a recorded step, compared payload by payload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.dataset.damage import Damage
from convmlp_platform.data.dataset.split import ReadPayload, ShardedSplit
from convmlp_platform.data.reading.loader import MicroBatch, TrainLoader, as_micro_batch
from convmlp_platform.data.reading.reader import SampleSource, TrainReader
from convmlp_platform.data.sample_order import Indices
from convmlp_platform.errors import DataError, StorageUnreachable
from convmlp_platform.ledger.ledger import EPOCH_SHIFT, REPLACED_SHIFT
from convmlp_platform.ledger.ledger_reader import RecordedAttempt

_LOW_HALF = 0xFFFFFFFF


@dataclass(frozen=True)
class Recorded:
    """The record of a micro-batch.

    Args:
        number: place in the step.
        samples, epochs: [B] int64; None where only the order function says what they were.
        checksums: [B], low halves of the XXH3-64 of the payloads that were read; None where nothing was recorded.
        replaced: [B] bool, places that were taken by other samples of the micro-batch.
    """

    number: int
    samples: Indices | None
    epochs: Indices | None
    checksums: NDArray[np.uint32] | None
    replaced: NDArray[np.bool_]


def consumed_in(attempt: RecordedAttempt, step: int) -> list[Recorded] | None:
    """All micro-batches that an attempt recorded of a step, by number; None where not all of them are recorded."""
    found: dict[int, Recorded] = {}
    for file in attempt.files.values():
        for frame in file.between(step, step + 1):
            for number, words, checksums in zip(
                frame["numbers"].tolist(), frame["samples"], frame["checksums"], strict=True
            ):
                plain = words & np.uint64((1 << REPLACED_SHIFT) - 1)
                found[number] = Recorded(
                    number,
                    (plain & np.uint64((1 << EPOCH_SHIFT) - 1)).astype(np.int64),
                    (plain >> np.uint64(EPOCH_SHIFT)).astype(np.int64),
                    checksums.copy(),
                    (words >> np.uint64(REPLACED_SHIFT)).astype(np.bool_),
                )
    whole = found.keys() == set(range(attempt.header.num_micro_batches))
    return [found[number] for number in sorted(found)] if whole else None


def read_again(loader: TrainLoader, step: int, wanted: Sequence[Recorded]) -> list[MicroBatch]:
    """The micro-batches of a step as they were consumed: same payloads, augmentation and replacements.

    Args:
        loader: says how samples are read and augmented; whichever rank it is of.

    Raises:
        DataError: a payload isn't what was consumed then, in any of the dataset's formats, or the samples on
            record aren't those of the loader's order.
    """
    return [_read(loader, step, consumed) for consumed in wanted]


def _read(loader: TrainLoader, step: int, consumed: Recorded) -> MicroBatch:
    size, where = loader.micro_batch_size, f"step {step}, micro-batch {consumed.number}"
    epochs, samples = loader.order.step_samples(step, loader.global_batch_size, consumed.number * size, size)
    for recorded, ordered in ((consumed.samples, samples), (consumed.epochs, epochs)):
        if recorded is not None and not np.array_equal(recorded, ordered):
            raise DataError(
                f"{where}: the samples on record are not those of the sample order, so the batch can't be made "
                "again: `convmlp data ledger RUN` says whether the record is damaged"
            )
    source = _RecordedSource(loader.split, loader.twin, where, _places(consumed))
    reader = TrainReader(
        source, loader.transform, loader.order, loader.global_batch_size, size, quarantine=True
    )
    read = reader.read((step, consumed.number))
    return as_micro_batch(read, consumed.number)


def _places(consumed: Recorded) -> Iterator[tuple[bool, int | None]]:
    checksums: Iterable[int | None] = [None] * len(consumed.replaced)
    if consumed.checksums is not None:
        checksums = consumed.checksums.tolist()
    return iter(list(zip(consumed.replaced.tolist(), checksums, strict=True)))


@dataclass(frozen=True)
class _RecordedSource(SampleSource):
    """Hands out one micro-batch's payloads as they were consumed, place by place; `places` has, for each, whether
    its sample was replaced, and its payload's checksum if that is known."""

    where: str = ""
    places: Iterator[tuple[bool, int | None]] = field(default_factory=lambda: iter(()))

    def draw(self, sample: int, use: Callable[[ReadPayload], None], damages: list[Damage]) -> ReadPayload:
        replaced, checksum = next(self.places)
        if replaced:  # intact again or not: then it was not used
            raise self.split.damaged(sample, "it was replaced when the step was done")

        def use_if_same(payload: ReadPayload) -> None:
            if checksum is not None and payload.checksum & _LOW_HALF != checksum:
                raise DataError("it is whole, but not what was read then")
            use(payload)

        problems = []
        for split in self._splits():
            try:
                return self._use(split, sample, use_if_same)
            except StorageUnreachable:
                raise
            except DataError as error:
                problems.append(f"{split.format}: {error}")
        key = self.split.key(sample)
        raise DataError(
            f"{self.where}: sample {sample} ({key!r}) can't be read as it was consumed: {'; '.join(problems)}"
        )

    def _splits(self) -> Iterator[ShardedSplit]:
        yield self.split
        if self.twin is not None:
            try:
                yield self.twin()
            except StorageUnreachable:
                raise
            except DataError:
                return
