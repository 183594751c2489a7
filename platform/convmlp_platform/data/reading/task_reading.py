"""The part of reading that differs from task to task: a micro-batch in the making, filled place by place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convmlp_platform.data.dataset.split import ReadPayload
from convmlp_platform.data.reading.batch_memory import Places, ReadTargets, Room, images_in_rows


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
