"""The part of reading that differs from task to task: a micro-batch in the making, filled place by place.

Classification has images of one size, each with its class; detection and instance segmentation images of their own
sizes, each with its objects; semantic segmentation crops of one size in training and whole images in evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convmlp_platform.data.dataset.split import ReadPayload
from convmlp_platform.data.reading.batch_memory import Places, ReadTargets, Room, images_in_rows
from data_prep.annotations.annotations import Detection, parse_detection
from data_prep.errors import RejectedSample
from data_prep.images.masks import check_values, read_mask

# convmlp's transforms take seconds to import, and classification reads without them.
if TYPE_CHECKING:
    from convmlp.transforms.label_map_transforms import SegmentationEvalTransform, SegmentationTrainTransform
    from convmlp.transforms.object_transforms import DetectionTransform, Objects


class SampleDraft(ABC):
    """The images and targets of one micro-batch."""

    targets: ReadTargets
    """By place; filled by `put`."""
    places: Places | None = None
    """Of images of different sizes."""

    @abstractmethod
    def put(self, place: int, payload: ReadPayload, key: int | None) -> None:
        """Decode and augment a sample; what is drawn is a function of `key`, None in evaluation, which draws nothing.

        Raises:
            OSError, ValueError: it can't be decoded, or its annotation is wrong.
            DamagedSample: its annotation is damaged.
        """

    @abstractmethod
    def repeat(self, donor: int, place: int) -> None:
        """Give a place the image and target of another one."""

    @abstractmethod
    def images(self) -> Tensor | list[Tensor]:
        """[B, 3, H, W], or [3, H, W] each."""


class TaskReading(ABC):
    """How the samples of a task become micro-batches."""

    @abstractmethod
    def room(self, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of the memory that the pixels of `size` samples need at most."""

    @abstractmethod
    def draft(self, size: int, room: Room | None) -> SampleDraft:
        """An empty micro-batch, its pixels in `room`'s first places or, where it is None, in memory of their own."""


class FixedDraft(SampleDraft):
    """Images of one size, in one array, and so their targets."""

    targets: NDArray[Any]

    def __init__(self, size: int, side: int, dtype: np.dtype[Any], room: Room | None) -> None:
        self._pixels = np.empty((size, side, side, 3), dtype) if room is None else room[:size]

    def repeat(self, donor: int, place: int) -> None:
        self._pixels[place] = self._pixels[donor]
        self.targets[place] = self.targets[donor]

    def images(self) -> Tensor:
        return torch.from_numpy(self._pixels).permute(0, 3, 1, 2)


class RowsDraft(SampleDraft):
    """Images of different sizes, each at the start of its row of bytes.

    Rows are as long as the largest image may be; the system gives no memory for what is never written.
    """

    places: Places
    targets: list[Any]

    def __init__(self, size: int, most_pixels: int, room: Room | None) -> None:
        self._rows: Room = np.empty((size, 3 * most_pixels), np.uint8) if room is None else room[:size]
        self.places = [(row, 0, 0) for row in range(size)]
        self.targets = [None] * size

    def take(self, place: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Returns the memory for the place's image of this height and width: shape (height, width, 3)."""
        height, width = size
        self.places[place] = (place, height, width)
        return self._rows[place, : 3 * height * width].reshape(height, width, 3)

    def repeat(self, donor: int, place: int) -> None:
        self.places[place], self.targets[place] = self.places[donor], self.targets[donor]

    def images(self) -> list[Tensor]:
        return images_in_rows(torch.from_numpy(self._rows), self.places)


class ImageTrainTransform(Protocol):
    """The part of a training transform that the reader needs (convmlp.transforms.image_transforms has the real one)."""

    size: int

    @property
    def dtype(self) -> np.dtype[Any]: ...
    def seed(self, key: int) -> None: ...
    def view(self, height: int, width: int) -> Any: ...
    def render(self, pixels: NDArray[np.uint8], view: Any, out: NDArray[Any]) -> None: ...


class ImageEvalTransform(Protocol):
    """The part of an evaluation transform that the reader needs."""

    size: int

    @property
    def dtype(self) -> np.dtype[Any]: ...
    def render(self, image: Image.Image, out: NDArray[np.uint8]) -> None: ...


@dataclass(frozen=True)
class ClassificationReading(TaskReading):
    """Labels [B] int64."""

    transform: ImageTrainTransform | ImageEvalTransform

    def room(self, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        side = self.transform.size
        return (size, side, side, 3), self.transform.dtype

    def draft(self, size: int, room: Room | None) -> SampleDraft:
        return _LabelledDraft(size, self.transform, room)


class _LabelledDraft(FixedDraft):
    def __init__(
        self, size: int, transform: ImageTrainTransform | ImageEvalTransform, room: Room | None
    ) -> None:
        super().__init__(size, transform.size, transform.dtype, room)
        self.targets = np.zeros(size, np.int64)
        self._transform: Any = transform

    def put(self, place: int, payload: ReadPayload, key: int | None) -> None:
        transform, out = self._transform, self._pixels[place]
        if key is None:
            transform.render(Image.fromarray(payload.pixels()), out)
        else:
            transform.seed(key)
            view = transform.view(payload.height, payload.width)
            transform.render(payload.seen(view.box, view.smallest(transform.size)), view, out)
        self.targets[place] = payload.label


@dataclass(frozen=True)
class DetectionReading(TaskReading):
    """Of each image: `boxes` [n, 4] float32 left, top, right, bottom in its pixels, `labels` [n] int64, `masks` as bits
    (convmlp.transforms.object_transforms) where the transform wants them, `image_id`, and `size`, height and width as
    published.

    Crowds are left out, and objects that preparation has listed as unusable (`odd_objects.jsonl`): without area,
    outside the image. Boxes are cut at the image's edge. Evaluation adds `objects`, everything as published.

    Args:
        class_ids: category ids by label.
    """

    transform: DetectionTransform
    class_ids: Sequence[int] | None

    def room(self, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return (size, 3 * self.transform.most_pixels), np.dtype(np.uint8)

    def draft(self, size: int, room: Room | None) -> SampleDraft:
        return _ObjectsDraft(size, self, room)


class _ObjectsDraft(RowsDraft):
    def __init__(self, size: int, reading: DetectionReading, room: Room | None) -> None:
        super().__init__(size, reading.transform.most_pixels, room)
        self._transform, self._class_ids = reading.transform, reading.class_ids

    def put(self, place: int, payload: ReadPayload, key: int | None) -> None:
        transform = self._transform
        found = parse_detection(payload.annotation(), self._class_ids)
        if key is not None:
            transform.seed(key)
        view = transform.view(payload.height, payload.width)
        pixels = payload.pixels() if key is None else payload.seen(view.box, view.smallest())
        view.pixels(pixels, self.take(place, view.size))
        target: dict[str, Any] = transform.target(_usable(found, transform.masks), view)
        target |= {"image_id": found.image_id, "size": (found.height, found.width)}
        if key is None:
            target["objects"] = found.drawable_objects
        self.targets[place] = target


def _usable(found: Detection, masks: bool) -> Objects:
    """Returns the objects that training can use; with `masks`, only objects that have a mask."""
    from convmlp.transforms.object_transforms import Objects

    usable = found.usable_masks if masks else found.usable
    segmentations = [item.get("segmentation") for item in found.objects]
    kept = np.flatnonzero(usable & ~found.is_crowd)
    boxes = found.boxes[kept]
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        boxes, found.labels[kept], [segmentations[at] for at in kept.tolist()], (found.height, found.width)
    )


@dataclass(frozen=True)
class SegmentationReading(TaskReading):
    """Label maps uint8, 255 where nothing is labelled: [B, size, size] of crops; [H, W] each, as stored, of whole
    images."""

    transform: SegmentationTrainTransform | SegmentationEvalTransform
    num_classes: int

    def room(self, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        from convmlp.transforms.label_map_transforms import SegmentationEvalTransform

        if isinstance(self.transform, SegmentationEvalTransform):
            return (size, 3 * self.transform.most_pixels), np.dtype(np.uint8)
        side = self.transform.size
        return (size, side, side, 3), np.dtype(np.uint8)

    def draft(self, size: int, room: Room | None) -> SampleDraft:
        from convmlp.transforms.label_map_transforms import SegmentationEvalTransform

        if isinstance(self.transform, SegmentationEvalTransform):
            return _WholeDraft(size, self.transform, self.num_classes, room)
        return _CropsDraft(size, self.transform, self.num_classes, room)


class _CropsDraft(FixedDraft):
    def __init__(
        self, size: int, transform: SegmentationTrainTransform, num_classes: int, room: Room | None
    ) -> None:
        super().__init__(size, transform.size, np.dtype(np.uint8), room)
        self.targets = np.empty((size, transform.size, transform.size), np.uint8)
        self._transform, self._num_classes = transform, num_classes

    def put(self, place: int, payload: ReadPayload, key: int | None) -> None:
        assert key is not None
        labels = _label_map(payload, self._num_classes)
        self._transform.seed(key)
        view = self._transform.view(labels)
        pixels = payload.seen(view.box, view.smallest())
        self._transform.render(pixels, labels, view, self._pixels[place], self.targets[place])


class _WholeDraft(RowsDraft):
    def __init__(
        self, size: int, transform: SegmentationEvalTransform, num_classes: int, room: Room | None
    ) -> None:
        super().__init__(size, transform.most_pixels, room)
        self._transform, self._num_classes = transform, num_classes

    def put(self, place: int, payload: ReadPayload, key: int | None) -> None:
        self.targets[place] = _label_map(payload, self._num_classes)
        view = self._transform.view(payload.height, payload.width)
        view.pixels(payload.pixels(), self.take(place, view.size))


def _label_map(payload: ReadPayload, num_classes: int) -> NDArray[np.uint8]:
    """Shape (height, width), of the image's size: mask value 0 becomes 255, value k label k - 1.

    Raises:
        RejectedSample: the mask is of another size, or has a value that is no class.
    """
    values = read_mask(payload.annotation())
    if values.shape != (payload.height, payload.width):
        raise RejectedSample(
            f"the mask has {values.shape[1]} x {values.shape[0]} pixels, the image {payload.width} x {payload.height}"
        )
    check_values(values, num_classes)
    return values - np.uint8(1)  # 0 wraps around to 255
