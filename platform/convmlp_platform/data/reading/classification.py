"""Reading for classification: images of one size, each with its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convmlp_platform.data.dataset.split import ReadPayload
from convmlp_platform.data.reading.batch_memory import Room
from convmlp_platform.data.reading.task_reading import SampleDraft, TaskReading


class ImageTrainTransform(Protocol):
    """The part of a training transform that the reader needs (convmlp.transforms.classification has the real one)."""

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
            transform.render(payload.pixels(view.smallest(transform.size)), view, out)
        self.targets[place] = payload.label


@dataclass(frozen=True)
class ClassificationReading(TaskReading):
    """Labels [B] int64."""

    transform: ImageTrainTransform | ImageEvalTransform

    def room(self, size: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
        side = self.transform.size
        return (size, side, side, 3), self.transform.dtype

    def draft(self, size: int, room: Room | None) -> SampleDraft:
        return _LabelledDraft(size, self.transform, room)
