"""The work of reader processes: whole micro-batches, decoded and augmented straight into their place in one array.

Damage is not hidden. A sample that could not be read as it was written is reported beside the pixels, and the training
process decides what that means (`data.dataset.damage`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.data.dataset.damage import Damage, DamagedSample, cause_of_all
from convmlp_platform.data.dataset.split import ReadPayload, ShardedSplit
from convmlp_platform.data.reading.batch_memory import ReadBatch, Room
from convmlp_platform.data.reading.task_reading import (
    ClassificationReading,
    DetectionReading,
    SampleDraft,
    SegmentationReading,
    TaskReading,
)
from convmlp_platform.data.sample_order import Indices, SampleOrder, derive_key
from convmlp_platform.errors import DataError, StorageUnreachable
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import RejectedSample

OpenSplit = Callable[[], ShardedSplit]


def task_reading(manifest: DatasetManifest, transform: Any) -> TaskReading:
    """How a dataset's samples are read, by its task.

    Args:
        transform: the task's own, of `convmlp.transforms`.

    Raises:
        DataError: it is another task's.
    """
    if manifest.task == "classification":
        return ClassificationReading(transform)
    # Imported where they are needed: pycocotools is not, for classification.
    if manifest.task == "detection":
        from convmlp.transforms.object_transforms import DetectionTransform

        if isinstance(transform, DetectionTransform):
            return DetectionReading(transform, manifest.class_ids)
    else:
        from convmlp.transforms.label_map_transforms import (
            SegmentationEvalTransform,
            SegmentationTrainTransform,
        )

        if isinstance(transform, SegmentationTrainTransform | SegmentationEvalTransform):
            return SegmentationReading(transform, manifest.num_classes)
    raise DataError(
        f"dataset {manifest.name} is for {manifest.task}, a {type(transform).__name__} can't prepare its samples"
    )


@dataclass(frozen=True)
class SampleSource:
    """A split, and where a damaged sample may still come from.

    Args:
        twin: opens the same split in the dataset's other format; None: there is none, or the policy is to fail.
    """

    split: ShardedSplit
    twin: OpenSplit | None = None

    @cached_property
    def _twin(self) -> ShardedSplit | None:
        return self.twin() if self.twin else None

    def draw(self, sample: int, use: Callable[[ReadPayload], None], damages: list[Damage]) -> ReadPayload:
        """Use the sample's payload, or its twin's where it is damaged or can't be decoded.

        Raises:
            DamagedSample: neither can be used.
        """
        try:
            return self._use(self.split, sample, use)
        except DamagedSample as error:
            damaged = error
        try:
            if self._twin is None:
                raise damaged
            payload = self._use(self._twin, sample, use)
        except StorageUnreachable:
            raise
        except DataError:
            raise damaged from None
        damages.append(damaged.damage._replace(outcome="repaired"))
        return payload

    @staticmethod
    def _use(split: ShardedSplit, sample: int, use: Callable[[ReadPayload], None]) -> ReadPayload:
        payload = split.payload(sample)
        try:
            use(payload)
        except RejectedSample as error:
            raise split.damaged(sample, f"its annotation can't be used ({error})") from None
        except (OSError, ValueError) as error:
            raise split.damaged(sample, f"it can't be decoded ({error})") from None
        return payload


@dataclass(frozen=True)
class TrainReader:
    """Training micro-batches by (step, number): a pure function of the dataset, the order and the transform.

    Args:
        quarantine: a damaged sample's place is taken by the next intact sample of its micro-batch; False raises.
    """

    source: SampleSource
    transform: Any
    order: SampleOrder
    global_batch_size: int
    micro_batch_size: int
    quarantine: bool = False

    @cached_property
    def _reading(self) -> TaskReading:
        return task_reading(self.source.split.manifest, self.transform)

    @property
    def room(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return self._reading.room(self.micro_batch_size)

    def read(self, place: tuple[int, int], room: Room | None = None) -> ReadBatch:
        """See `batch_memory.Reader`.

        Raises:
            DataError: a sample is damaged and not replaced; StorageUnreachable where the storage is away.
        """
        step, number = place
        size = self.micro_batch_size
        epochs, samples = self.order.step_samples(step, self.global_batch_size, number * size, size)
        self.source.split.storage.ahead(samples.tolist())
        draft = self._reading.draft(len(samples), room)
        checksums, damages, lost = np.zeros(len(samples), np.int64), list[Damage](), list[int]()
        for at, (epoch, sample) in enumerate(zip(epochs.tolist(), samples.tolist(), strict=True)):
            key = derive_key(self.order.seed, "augment", epoch, sample)
            try:
                payload = self.source.draw(sample, partial(_put, draft, at, key), damages)
            except DamagedSample as error:
                if not self.quarantine:
                    raise
                damages.append(error.damage._replace(epoch=epoch))
                lost.append(at)
                continue
            checksums[at] = _signed(payload.checksum)
        replaced = _replace_lost(draft, len(samples), lost, damages)
        return _finished(draft, samples, epochs, checksums, replaced, damages)


@dataclass(frozen=True)
class EvalReader:
    """Held-out images by their sample ids. None is ever replaced: the figure would be that of another split."""

    source: SampleSource
    transform: Any
    batch_size: int

    @cached_property
    def _reading(self) -> TaskReading:
        return task_reading(self.source.split.manifest, self.transform)

    @property
    def room(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return self._reading.room(self.batch_size)

    def read(self, samples: range, room: Room | None = None) -> ReadBatch:
        """See `batch_memory.Reader`.

        Raises:
            DataError: a sample is damaged, and has no intact twin; StorageUnreachable where the storage is away.
        """
        ids = np.asarray(samples, np.int64)
        checksums, damages = np.zeros(len(ids), np.int64), list[Damage]()
        draft = self._reading.draft(len(ids), room)
        self.source.split.storage.ahead(samples)
        for place, sample in enumerate(samples):
            payload = self.source.draw(sample, partial(_put, draft, place, None), damages)
            checksums[place] = _signed(payload.checksum)
        return _finished(draft, ids, np.zeros_like(ids), checksums, np.zeros(len(ids), np.bool_), damages)


def _put(draft: SampleDraft, place: int, key: int | None, payload: ReadPayload) -> None:
    draft.put(place, payload, key)


def _replace_lost(draft: SampleDraft, size: int, lost: list[int], damages: list[Damage]) -> NDArray[np.bool_]:
    """Give each lost place to the next intact sample of the micro-batch, as it was augmented there."""
    if len(lost) == size:
        raise DataError(
            f"all {size} samples of a micro-batch are damaged, so none can take another's place: "
            + "; ".join(f"{damage.where}: {damage.reason}" for damage in damages[:3]),
            cause=cause_of_all(damages),
        )
    replaced = np.zeros(size, np.bool_)
    for place in lost:
        draft.repeat(next(at % size for at in range(place + 1, place + size) if at % size not in lost), place)
        replaced[place] = True
    return replaced


def _finished(
    draft: SampleDraft,
    samples: Indices,
    epochs: Indices,
    checksums: Indices,
    replaced: NDArray[np.bool_],
    damages: list[Damage],
) -> ReadBatch:
    return ReadBatch(
        draft.images(), draft.targets, samples, epochs, checksums, replaced, tuple(damages), draft.places
    )


def _signed(checksum: int) -> int:
    """The same 64 bits as torch and numpy keep them in int64."""
    return checksum - (1 << 64) if checksum >> 63 else checksum
