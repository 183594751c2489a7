"""What reader processes do: whole micro-batches, decoded and augmented straight into their place in one array.

Damage is not hidden: what could not be read as it was written is told beside the pixels, and the training process
decides what it means (`data.quarantine`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.data.batch import ReadBatch, Refused, Room, empty_batch
from convmlp_platform.data.damage import Damage, DamagedSample
from convmlp_platform.data.order import SampleOrder
from convmlp_platform.data.permutation import Indices, derive_key
from convmlp_platform.data.split import Payload, ShardedSplit
from convmlp_platform.data.storage import StorageUnreachable
from convmlp_platform.errors import DataError, PlatformError

OpenSplit = Callable[[], ShardedSplit]


class TrainTransform(Protocol):
    """What the reader needs of a training transform (convmlp.transforms has the real one)."""

    size: int

    @property
    def dtype(self) -> np.dtype[Any]: ...
    def seed(self, key: int) -> None: ...
    def view(self, height: int, width: int) -> Any: ...
    def render(self, pixels: NDArray[np.uint8], view: Any, out: NDArray[Any]) -> None: ...


class EvalTransform(Protocol):
    """What the reader needs of an evaluation transform."""

    size: int

    def render(self, image: Image.Image, out: NDArray[np.uint8]) -> None: ...


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

    def draw(self, sample: int, use: Callable[[Payload], None], damages: list[Damage]) -> Payload:
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
    def _use(split: ShardedSplit, sample: int, use: Callable[[Payload], None]) -> Payload:
        payload = split.payload(sample)
        try:
            use(payload)
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
    transform: TrainTransform
    order: SampleOrder
    global_batch_size: int
    micro_batch_size: int
    quarantine: bool = False

    @property
    def room(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        size = self.transform.size
        return (self.micro_batch_size, size, size, 3), self.transform.dtype

    def read(self, place: tuple[int, int], room: Room | None = None) -> ReadBatch | Refused:
        step, number = place
        size = self.micro_batch_size
        epochs, samples = self.order.step_samples(step, self.global_batch_size, number * size, size)
        try:
            return self._read(epochs, samples, room)
        except PlatformError as error:
            return Refused(str(error))

    def _read(self, epochs: Indices, samples: Indices, room: Room | None) -> ReadBatch:
        self.source.split.storage.ahead(samples.tolist())
        batch, pixels = empty_batch(samples, epochs, self.transform.size, self.transform.dtype, room)
        damages: list[Damage] = []
        lost: list[int] = []
        for place, (epoch, sample) in enumerate(zip(epochs.tolist(), samples.tolist(), strict=True)):
            try:
                payload = self.source.draw(sample, self._into(pixels[place], epoch, sample), damages)
            except DamagedSample as error:
                if not self.quarantine:
                    raise
                damages.append(error.damage._replace(epoch=epoch))
                lost.append(place)
                continue
            batch.labels[place] = payload.label
            batch.checksums[place] = _signed(payload.checksum)
        _fill(batch, pixels, lost, damages)
        return batch._replace(damages=tuple(damages))

    def _into(self, out: NDArray[Any], epoch: int, sample: int) -> Callable[[Payload], None]:
        def render(payload: Payload) -> None:
            transform = self.transform
            transform.seed(derive_key(self.order.seed, "augment", epoch, sample))
            view = transform.view(payload.height, payload.width)
            transform.render(payload.pixels(view.smallest(transform.size)), view, out)

        return render


@dataclass(frozen=True)
class EvalReader:
    """Held-out images by their sample ids. None is ever replaced: the figure would be that of another split."""

    source: SampleSource
    transform: EvalTransform
    batch_size: int

    @property
    def room(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        size = self.transform.size
        return (self.batch_size, size, size, 3), np.dtype(np.uint8)

    def read(self, samples: range, room: Room | None = None) -> ReadBatch | Refused:
        ids = np.asarray(samples, np.int64)
        size, kind = self.transform.size, np.dtype(np.uint8)
        batch, pixels = empty_batch(ids, np.zeros_like(ids), size, kind, room)
        damages: list[Damage] = []
        try:
            self.source.split.storage.ahead(samples)
            for place, sample in enumerate(samples):
                payload = self.source.draw(sample, self._into(pixels[place]), damages)
                batch.labels[place] = payload.label
                batch.checksums[place] = _signed(payload.checksum)
        except PlatformError as error:
            return Refused(str(error))
        return batch._replace(damages=tuple(damages))

    def _into(self, out: NDArray[np.uint8]) -> Callable[[Payload], None]:
        return lambda payload: self.transform.render(Image.fromarray(payload.pixels()), out)


def _fill(batch: ReadBatch, pixels: NDArray[Any], lost: list[int], damages: list[Damage]) -> None:
    """Give each lost place to the next intact sample of the micro-batch, as it was augmented there."""
    size = len(pixels)
    if len(lost) == size:
        raise DataError(
            f"all {size} samples of a micro-batch are damaged, so none can take another's place: "
            + "; ".join(f"{damage.where}: {damage.reason}" for damage in damages[:3])
        )
    for place in lost:
        donor = next(at % size for at in range(place + 1, place + size) if at % size not in lost)
        pixels[place] = pixels[donor]
        batch.labels[place] = batch.labels[donor]
        batch.replaced[place] = True


def _signed(checksum: int) -> int:
    """The same 64 bits as torch and numpy keep them in int64."""
    return checksum - (1 << 64) if checksum >> 63 else checksum
