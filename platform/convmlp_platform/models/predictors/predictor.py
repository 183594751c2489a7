"""From images to what a bundle's model says of them, whatever its task."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from convmlp_platform.errors import DataError
from convmlp_platform.models.bundle import BundleSpec, load_bundle
from convmlp_platform.models.prediction import Prediction
from convmlp_platform.models.predictors.given_images import ImageLike
from convmlp_platform.models.task_spec import DetectionSpec, SegmentationSpec

_MAX_THREADS = 16


@dataclass(frozen=True)
class SeenImage:
    """An image as the model sees it.

    `pixels`: float32 [3, H, W]. `size`: height and width of the image as it was given, turned as the bundle says.
    """

    pixels: Tensor
    size: tuple[int, int]


class Predictor(ABC):
    """A model and its image preparation, which is that of the task's evaluation. Computes on the GPU where there is
    one. Images are decoded in threads; several threads may ask at once.

    Args:
        model: as `load_bundle` returns it.
        spec: of the same bundle.
    """

    batch_size = 1
    """Images a forward pass."""

    def __init__(self, model: nn.Module, spec: BundleSpec) -> None:
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.spec = spec

    @property
    def device(self) -> torch.device:
        """The place of the model, wherever it was moved since."""
        return next(self.model.parameters()).device

    @abstractmethod
    def see(self, image: ImageLike, position: int) -> SeenImage:
        """Returns an image, decoded and prepared; `position` is for the message about bytes and opened images.

        Raises:
            DataError: it is missing or unreadable, the message names it.
        """

    @abstractmethod
    def answer(self, images: Sequence[SeenImage]) -> Sequence[Prediction]:
        """Returns the model's prediction for each of up to `batch_size` images.

        Raises:
            DataError: the answer is not finite.
        """

    def predict(self, images: Sequence[ImageLike]) -> list[Prediction]:
        """Returns the model's prediction for each image: `Labels`, `Detections` or a `LabelMap`.

        Raises:
            DataError: an image is missing or unreadable, the message names it; or the answer is not finite.
        """
        return [one for one in self._answers(images, strict=True) if not isinstance(one, DataError)]

    def predict_each(self, images: Sequence[ImageLike | DataError]) -> list[Prediction | DataError]:
        """Returns for each image its prediction, or the error that it can't be read for; an error stays as it is.

        Raises:
            DataError: the answer is not finite.
        """
        return self._answers(images, strict=False)

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        """Threads that decode images: as many as this process has cores, up to 16."""
        return ThreadPoolExecutor(_thread_count(), thread_name_prefix="decode")

    def _answers(
        self, images: Sequence[ImageLike | DataError], *, strict: bool
    ) -> list[Prediction | DataError]:
        found: dict[int, Prediction | DataError] = {}
        batch: dict[int, SeenImage] = {}
        for position, one in enumerate(self._seen(images)):
            if isinstance(one, SeenImage):
                batch[position] = one
            elif strict:
                raise one
            else:
                found[position] = one
            if len(batch) == self.batch_size:
                found |= zip(batch, self.answer(list(batch.values())), strict=True)
                batch = {}
        if batch:
            found |= zip(batch, self.answer(list(batch.values())), strict=True)
        return [found[position] for position in range(len(images))]

    def _seen(self, images: Sequence[ImageLike | DataError]) -> Iterator[SeenImage | DataError]:
        """Yields the images in order; the threads are at most two images each ahead, whose pixels may be many."""
        waiting: deque[Future[SeenImage | DataError]] = deque()
        ahead = 2 * _thread_count()
        try:
            for position, image in enumerate(images):
                waiting.append(self.threads.submit(self._see, image, position))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _see(self, image: ImageLike | DataError, position: int) -> SeenImage | DataError:
        if isinstance(image, DataError):
            return image
        try:
            return self.see(image, position)
        except DataError as error:
            return error

    @staticmethod
    def from_folder(folder: Path) -> Predictor:
        """The predictor of a bundle folder. Raises as `load_bundle`."""
        return predictor_of(*load_bundle(folder))


def _thread_count() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, _MAX_THREADS)


def expect_finite(values: Tensor) -> None:
    """Refuse to make an answer of numbers that are none.

    Raises:
        DataError: some are infinite or NaN.
    """
    if not bool(values.isfinite().all()):
        raise DataError("the model's answer is not finite: its weights or `mean` and `std` are damaged")


def expect_finite_maps(model: nn.Module) -> None:
    """Let a detector or segmenter refuse feature maps that are not finite: they would count as "no object"."""

    def check(module: nn.Module, images: tuple[Tensor, ...], maps: dict[str, Tensor]) -> None:
        for values in maps.values():
            expect_finite(values)

    model.get_submodule("backbone").register_forward_hook(check)


def predictor_of(model: nn.Module, spec: BundleSpec) -> Predictor:
    """The predictor of a bundle's model, by the task of its spec."""
    if isinstance(spec.task, DetectionSpec):
        from convmlp_platform.models.predictors.detector import Detector

        return Detector(model, spec)
    if isinstance(spec.task, SegmentationSpec):
        from convmlp_platform.models.predictors.segmenter import Segmenter

        return Segmenter(model, spec)
    from convmlp_platform.models.predictors.classifier import Classifier

    return Classifier(model, spec)
